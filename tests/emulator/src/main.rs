//! `hub-emulator`: an IoT Hub on this machine, to point a device and one's own tools at.

mod demo;
mod lone_board;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hub_emulator::hub::{Hub, HubOptions};

/// An Azure IoT Hub on this machine, to try a device against.
///
/// It speaks MQTT 3.1.1 over TLS to devices (SAS and X.509, direct methods, twins) and enough of the REST API to
/// operate them. It listens on the loopback interface only, and forgets everything when it ends.
#[derive(Parser)]
#[command(name = "hub-emulator", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the hub until Ctrl-C
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Shows one update of an emulated board, from the method call to its end
    Demo(demo::Demo),
    /// Runs an emulated board against a hub that runs already, and offers an image for it, until Ctrl-C
    Board(lone_board::LoneBoard),
}

const SERVE_HELP: &str = r#"The keys and the certificate authority are new at each start. Give the device the connection string that is printed
for it, the port of --mqtt-port and the authority's certificate of --ca-file as the one to trust. It also prints how
to call a method of the device and read its twin with curl.

GET /emulator/events/dev-1, with a token of iothubowner, gives what the device has sent to the cloud, GET
/emulator/uploads/dev-1 the files that it has uploaded; and POST /devices/dev-1/messages/devicebound sends it a message.

Faults are injected by POST /emulator/faults with a token of iothubowner, as JSON with any of these keys:
  {"dropConnections": true}                    drops every device's connection, without a word
  {"refuseConnects": {"times": 2, "code": 3}}  refuses the next connects with this CONNACK code
  {"keepOut": ["dev-1"]}                       drops these devices, until a list without them follows
  {"muteTwin": true}                           carries out no twin request, pushes no desired properties
  {"failNextPatch": 429}                       refuses the next patch of reported properties; 0 takes it back
  {"throttle": 3}                              refuses the next calls of services with 429; with
                                               "throttleOperation" those of one kind: registryRead, registryWrite,
                                               twinRead, twinWrite, query, directMethod, configurationRead,
                                               configurationWrite, jobRead, jobWrite or message
  {"failNextRegistration": 503}                refuses the next request to the provisioning service with this status
  {"busyPolls": 2, "retryAfterSecs": 1}        lets registrations take so many polls, and asks to wait in between
  {"awaySecs": 5}                              drops everybody, lets nobody in, answers when that is over"#;

#[derive(Args)]
struct Serve {
    /// Port for devices; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8883)]
    mqtt_port: u16,
    /// Port for the service API; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8443)]
    https_port: u16,
    /// Where to write the certificate of the authority that clients must trust
    #[arg(long, value_name = "PATH", default_value = "hub-emulator-ca.pem")]
    ca_file: PathBuf,
    /// A device to register with new keys; can be given more than once
    #[arg(long = "device", value_name = "ID", default_values_t = [String::from("dev-1")])]
    devices: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("listen on ports {mqtt} and {https} of the loopback interface: {source}")]
    Listen { mqtt: u16, https: u16, source: std::io::Error },
    #[error("write the authority's certificate to {path}: {source}")]
    CaFile { path: PathBuf, source: std::io::Error },
    #[error("wait for Ctrl-C: {0}")]
    Signal(#[source] std::io::Error),
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    #[error(transparent)]
    Board(#[from] lone_board::LoneBoardError),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hub-emulator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<(), CliError> {
    let runtime = tokio::runtime::Runtime::new().map_err(CliError::Runtime)?;
    match command {
        Command::Serve(options) => {
            let colours = std::io::stderr().is_terminal();
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_ansi(colours)
                .with_target(false)
                .init();
            Ok(runtime.block_on(serve(options))?)
        }
        Command::Demo(options) => Ok(runtime.block_on(demo::run(options))?),
        Command::Board(options) => Ok(runtime.block_on(lone_board::run(options))?),
    }
}

async fn serve(options: &Serve) -> Result<(), ServeError> {
    let (mqtt, https) = (options.mqtt_port, options.https_port);
    let ports = HubOptions { mqtt_port: mqtt, https_port: https, ..HubOptions::default() };
    let hub = Hub::start(ports).await.map_err(|source| ServeError::Listen { mqtt, https, source })?;
    write_ca(&hub, &options.ca_file).await?;
    println!("devices:   mqtts://localhost:{}", hub.mqtt_port());
    println!("service:   https://localhost:{}", hub.https_port());
    println!("authority: {}", options.ca_file.display());
    println!("service connection string:\n  {}", hub.service_connection_string());
    println!("id scope of the provisioning service: {}", hub.dps().id_scope());
    println!("provisioning connection string:\n  {}", hub.dps().service_connection_string());
    for id in &options.devices {
        println!("connection string of device {id}:\n  {}", hub.add_device(id));
    }
    println!("call a method, and read the twin (the token is good for a day):");
    print!("{}", curl_lines(&hub, options));
    println!("Ctrl-C ends it.");
    tokio::signal::ctrl_c().await.map_err(ServeError::Signal)
}

fn curl_lines(hub: &Hub, options: &Serve) -> String {
    let (ca_file, port) = (options.ca_file.display(), hub.https_port());
    let token = hub.service_token().unwrap_or_default();
    let device = options.devices.first().map_or("dev-1", String::as_str);
    let curl = format!("  curl --cacert {ca_file} -H 'Authorization: {token}'");
    let url = format!("https://localhost:{port}/twins/{device}");
    let body = r#"{"methodName":"firmwareUpdateStatus","payload":null}"#;
    format!(
        "{curl} -d '{body}' '{url}/methods?api-version=2021-04-12'\n{curl} '{url}?api-version=2021-04-12'\n"
    )
}

async fn write_ca(hub: &Hub, path: &Path) -> Result<(), ServeError> {
    let written = tokio::fs::write(path, hub.ca_pem()).await;
    written.map_err(|source| ServeError::CaFile { path: path.to_owned(), source })
}
