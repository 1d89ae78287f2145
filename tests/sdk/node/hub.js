'use strict';
// The hub under test, as a service sees it, and devices on it.

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { randomUUID } = require('node:crypto');
const { test: runTest } = require('node:test');
const { setTimeout: pause } = require('node:timers/promises');
const { Client: DeviceClient } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const iothub = require('azure-iothub');

// A loaded machine may take its time; a test that passes does not wait for it.
const LIMIT_MS = 30_000;
const SERVICE = process.env.HUB_SERVICE;

const registry = iothub.Registry.fromConnectionString(SERVICE);
const service = iothub.Client.fromConnectionString(SERVICE);

/** Both ways of a device to the hub: port 8883, and a WebSocket on port 443. */
const TRANSPORTS = { Mqtt, MqttWs };

/** A test that ends, even if an SDK waits for ever. */
const test = (name, body) => runTest(name, { timeout: 2 * LIMIT_MS }, body);

/** Waits for a true value of `condition`, and returns it. */
async function until(condition) {
  const end = Date.now() + LIMIT_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert.ok(Date.now() < end, `not within ${LIMIT_MS} ms, the last value is ${value}`);
    await pause(20);
  }
}

/** The next `name` that `emitter` emits. */
async function heard(emitter, name) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), LIMIT_MS);
  const [value] = await once(emitter, name, { signal: limit.signal }).finally(() => clearTimeout(timer));
  return value;
}

/** Calls of the REST API that the SDK does not offer. */
async function rest(method, path, body, headers = {}) {
  const { HostName, SharedAccessKeyName, SharedAccessKey } = iothub.ConnectionString.parse(SERVICE);
  const expiry = Math.ceil(Date.now() / 1000) + 60;
  const token = iothub.SharedAccessSignature.create(HostName, SharedAccessKeyName, SharedAccessKey, expiry);
  const answer = await fetch(`https://${HostName}${path}?api-version=2021-04-12`, {
    method, headers: { Authorization: token.toString(), ...headers }, body,
    signal: AbortSignal.timeout(LIMIT_MS),
  });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.clone().text()}`);
  return answer.headers.get('content-type')?.startsWith('application/json') ? answer.json() : answer;
}

/** Injects faults, until the end of the test. */
async function faults(t, wanted) {
  const post = (body) => rest('POST', '/emulator/faults', JSON.stringify(body));
  t.after(() => post({ refuseConnects: { times: 0 }, keepOut: [], muteTwin: false, failNextPatch: 0, throttle: 0 }));
  await post(wanted);
}

/** A registered device with keys that the hub made. It and its clients end with the test. */
async function device(t, authentication) {
  const id = `node-${randomUUID()}`;
  const { responseBody: identity } = await registry.create({ deviceId: id, authentication });
  const clients = [];
  t.after(async () => {
    await Promise.all(clients.map((client) => client.close()));
    await registry.delete(id).catch(() => { /* the test did it */ });
  });
  return { id, key: identity.authentication.symmetricKey?.primaryKey, identity, clients };
}

/** A client of the device that is not open yet. */
function client(device, transport = Mqtt, secret = `SharedAccessKey=${device.key}`) {
  const text = `HostName=localhost;DeviceId=${device.id};${secret}`;
  const made = DeviceClient.fromConnectionString(text, transport);
  // An error that nobody listens to would end the process.
  made.on('error', () => {});
  device.clients.push(made);
  return made;
}

async function connect(device, transport) {
  const connected = client(device, transport);
  await connected.open();
  return connected;
}

/** Calls a direct method, and returns status and payload of the answer. */
async function call(device, methodName, payload, timeouts = {}) {
  const { result } = await service.invokeDeviceMethod(device.id, { methodName, payload, ...timeouts });
  return [result.status, result.payload];
}

async function serviceTwin(device) {
  return (await registry.getTwin(device.id)).responseBody;
}

function desire(device, desired) {
  return registry.updateTwin(device.id, { properties: { desired } }, '*');
}

module.exports = {
  SERVICE, TRANSPORTS, call, client, connect, desire, device, faults, heard, registry, rest, serviceTwin, test, until,
};
