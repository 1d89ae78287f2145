//! Compressed bytes in, image bytes out, with bounded memory and no I/O.

use std::io;

use flate2::{Decompress, FlushDecompress};
use liblzma::stream::{Action, Error as XzError, Status, Stream as XzStream};
use serde::{Deserialize, Serialize};
use zstd::stream::raw::{DParameter, Decoder as ZstdFrames, Operation};

use crate::update::Code;

/// Window of `zstd -19`, and dictionary of `xz -6`: what a device grants for decompression.
const WINDOW_LOG: u32 = 23;

/// The same for xz, with room for its probability tables. However many blocks a file has, liblzma keeps one hash
/// of them, not a list.
const XZ_MEMORY_BYTES: u64 = (1 << WINDOW_LOG) + (256 << 10);

/// Window of gzip: the format knows no larger one.
const GZIP_WINDOW_LOG: u8 = 15;

/// Bytes that tell the formats apart.
pub const MAGIC_BYTES: usize = 6;

/// How an image is packed at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Not at all.
    Raw,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// The .xz file format.
    Xz,
}

impl Format {
    /// Tells the format by the first [`MAGIC_BYTES`] of a source; what is no known magic is a raw image.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Self::Xz,
            _ => Self::Raw,
        }
    }
}

/// Why compressed data gives no image.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The decoder says no; trailing garbage is found here too.
    #[error("{format:?} data is damaged near byte {offset} of the source")]
    Damaged {
        /// As told by the magic.
        format: Format,
        /// Source offset in bytes.
        offset: u64,
        /// The decoder's words.
        source: io::Error,
    },
    /// The source ends inside a frame.
    #[error("{format:?} data ends in the middle")]
    Truncated {
        /// As told by the magic.
        format: Format,
    },
    /// Not a single byte.
    #[error("the image is empty")]
    Empty,
    /// The window or dictionary is larger than 8 MiB.
    #[error(
        "{format:?} data needs more than 8 MiB of memory to decompress: recompress with `zstd -19` (no --long or --ultra) or `xz -6`"
    )]
    Memory {
        /// As told by the magic.
        format: Format,
    },
    /// No memory for the decoder.
    #[error("cannot set up the {format:?} decoder")]
    Setup {
        /// As told by the magic.
        format: Format,
        /// The decoder's words.
        source: io::Error,
    },
}

impl DecodeError {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Memory { .. } => Code::DecoderMemory,
            _ => Code::DecodeFailed,
        }
    }
}

/// What one [`Decoder::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Input bytes that are done with.
    pub consumed: usize,
    /// Output bytes made.
    pub produced: usize,
}

enum Machine {
    Copy,
    Zstd(ZstdFrames<'static>),
    Gzip(Decompress),
    Xz { stream: XzStream, padding: usize },
}

/// A source of any number of frames (zstd), members (gzip) or streams (xz), decoded one after the other.
pub struct Decoder {
    format: Format,
    machine: Machine,
    /// A fresh decoder could go on from here.
    at_boundary: bool,
    consumed: u64,
}

impl Decoder {
    /// At the start of a source, or at a boundary `consumed` bytes into it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(format: Format, consumed: u64) -> Result<Self, DecodeError> {
        let setup = |source| DecodeError::Setup { format, source };
        let machine = match format {
            Format::Raw => Machine::Copy,
            Format::Zstd => {
                let mut frames = ZstdFrames::new().map_err(setup)?;
                frames.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(setup)?;
                Machine::Zstd(frames)
            }
            Format::Gzip => Machine::Gzip(Decompress::new_gzip(GZIP_WINDOW_LOG)),
            Format::Xz => Machine::Xz { stream: new_xz().map_err(setup)?, padding: 0 },
        };
        Ok(Self { format, machine, at_boundary: true, consumed })
    }

    /// What it decodes.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether a fresh decoder could go on from here, or the source may end here.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.at_boundary
    }

    /// Turns some of `input` into some of `output`. Where it filled `output`, more may be waiting inside.
    ///
    /// # Errors
    /// Damaged data, or data that needs too much memory.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, DecodeError> {
        let format = self.format;
        let done = match &mut self.machine {
            Machine::Copy => Ok((copy(input, output), true)),
            Machine::Zstd(frames) => zstd_step(frames, input, output),
            Machine::Gzip(member) => gzip_step(member, self.at_boundary, input, output),
            Machine::Xz { stream, padding } => {
                let between = self.consumed > 0 && (self.at_boundary || *padding > 0);
                xz_step(stream, padding, between, input, output)
            }
        };
        let (step, at_boundary) = done.map_err(|source| match source.kind() {
            io::ErrorKind::OutOfMemory => DecodeError::Memory { format },
            _ => DecodeError::Damaged { format, offset: self.consumed, source },
        })?;
        if step == (Step { consumed: 0, produced: 0 }) && !input.is_empty() && !output.is_empty() {
            let source = io::Error::other("the decoder makes no progress");
            return Err(DecodeError::Damaged { format, offset: self.consumed, source });
        }
        self.at_boundary = at_boundary;
        self.consumed += step.consumed as u64;
        Ok(step)
    }

    /// The source has ended.
    ///
    /// # Errors
    /// When it ended inside a frame.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.consumed == 0 {
            return Err(DecodeError::Empty);
        }
        if self.at_boundary { Ok(()) } else { Err(DecodeError::Truncated { format: self.format }) }
    }
}

fn copy(input: &[u8], output: &mut [u8]) -> Step {
    let len = input.len().min(output.len());
    output.split_at_mut(len).0.copy_from_slice(input.split_at(len).0);
    Step { consumed: len, produced: len }
}

fn zstd_step(frames: &mut ZstdFrames<'static>, input: &[u8], output: &mut [u8]) -> io::Result<(Step, bool)> {
    let status = frames.run_on_buffers(input, output).map_err(|error| {
        // The library's text for ZSTD_error_frameParameter_windowTooLarge; the crate hides the number.
        if error.to_string().contains("too much memory") { io::ErrorKind::OutOfMemory.into() } else { error }
    })?;
    let step = Step { consumed: status.bytes_read, produced: status.bytes_written };
    Ok((step, status.remaining == 0))
}

fn gzip_step(
    member: &mut Decompress,
    at_boundary: bool,
    input: &[u8],
    output: &mut [u8],
) -> io::Result<(Step, bool)> {
    if at_boundary {
        // Keeps the gzip wrapper; a next member starts with a header of its own.
        member.reset(true);
    }
    let (before_in, before_out) = (member.total_in(), member.total_out());
    let status = member.decompress(input, output, FlushDecompress::None).map_err(io::Error::other)?;
    let step = Step {
        consumed: usize::try_from(member.total_in() - before_in).map_err(io::Error::other)?,
        produced: usize::try_from(member.total_out() - before_out).map_err(io::Error::other)?,
    };
    Ok((step, status == flate2::Status::StreamEnd))
}

fn new_xz() -> io::Result<XzStream> {
    Ok(XzStream::new_stream_decoder(XZ_MEMORY_BYTES, 0)?)
}

fn xz_step(
    stream: &mut XzStream,
    padding: &mut usize,
    between: bool,
    input: &[u8],
    output: &mut [u8],
) -> io::Result<(Step, bool)> {
    if between {
        // Stream padding: zeros in groups of four (the .xz file format, 2.2).
        let zeros = input.iter().take_while(|byte| **byte == 0).count();
        *padding = (*padding + zeros) % 4;
        if zeros > 0 {
            return Ok((Step { consumed: zeros, produced: 0 }, *padding == 0));
        }
        if *padding != 0 {
            return Err(io::Error::other("stream padding is no multiple of four bytes"));
        }
        *stream = new_xz()?;
    }
    let (before_in, before_out) = (stream.total_in(), stream.total_out());
    let status = stream.process(input, output, Action::Run).map_err(|error| match error {
        XzError::MemLimit => io::ErrorKind::OutOfMemory.into(),
        error => io::Error::from(error),
    })?;
    let step = Step {
        consumed: usize::try_from(stream.total_in() - before_in).map_err(io::Error::other)?,
        produced: usize::try_from(stream.total_out() - before_out).map_err(io::Error::other)?,
    };
    Ok((step, status == Status::StreamEnd))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// What a real compressor makes of `data`.
    fn packed(program: &[&str], data: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let data = data.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&data).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// Decodes with input and output in pieces of these sizes.
    fn unpacked(source: &[u8], input: usize, output: usize) -> Result<Vec<u8>, DecodeError> {
        decoded(&mut Decoder::new(Format::of(source), 0)?, source, input, output)
    }

    fn decoded(
        decoder: &mut Decoder,
        source: &[u8],
        input: usize,
        output: usize,
    ) -> Result<Vec<u8>, DecodeError> {
        let (mut image, mut piece) = (Vec::new(), vec![0; output]);
        for mut chunk in source.chunks(input) {
            loop {
                let step = decoder.step(chunk, &mut piece)?;
                chunk = &chunk[step.consumed..];
                image.extend_from_slice(&piece[..step.produced]);
                if chunk.is_empty() && (step.produced < output || decoder.at_boundary()) {
                    break;
                }
            }
        }
        decoder.finish()?;
        Ok(image)
    }

    const COMPRESSORS: [&[&str]; 4] =
        [&["zstd", "-19", "-q", "-c"], &["gzip", "-c"], &["xz", "-6", "-c"], &["cat"]];

    fn sample() -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..300_000_u32).flat_map(|i| [random.u8(..16), i.to_le_bytes()[1]]).collect()
    }

    #[test]
    fn every_format_is_decoded_in_pieces_of_any_size() {
        let data = sample();
        for compressor in COMPRESSORS {
            let source = packed(compressor, &data);
            for (input, output) in [(1 << 20, 1 << 20), (7, 1 << 16), (4096, 1000), (100_000, 13)] {
                assert!(unpacked(&source, input, output).unwrap() == data, "{compressor:?} {input} {output}");
            }
        }
    }

    #[test]
    fn several_frames_make_one_image() {
        let data = sample();
        let (left, right) = data.split_at(123_456);
        for compressor in COMPRESSORS {
            let source = [packed(compressor, left), packed(compressor, right)].concat();
            assert!(unpacked(&source, 999, 1 << 16).unwrap() == data, "{compressor:?}");
        }
        let padded =
            [packed(COMPRESSORS[2], left), vec![0; 8], packed(COMPRESSORS[2], right), vec![0; 4]].concat();
        assert!(unpacked(&padded, 3, 1 << 16).unwrap() == data);
    }

    #[test]
    fn a_fresh_decoder_goes_on_at_each_boundary_also_in_the_padding_of_xz() {
        let data = sample();
        let (left, right) = data.split_at(123_456);
        for compressor in COMPRESSORS {
            let padding = if compressor[0] == "xz" { 8 } else { 0 };
            let (first, second) = (packed(compressor, left), packed(compressor, right));
            let rest = [vec![0; padding], second].concat();
            for skipped in (0..=padding).step_by(4) {
                let consumed = (first.len() + skipped) as u64;
                let mut decoder = Decoder::new(Format::of(&first), consumed).unwrap();
                let image = decoded(&mut decoder, &rest[skipped..], 3, 1 << 16).unwrap();
                assert!(image == right, "{compressor:?} {skipped}");
            }
        }
    }

    #[test]
    fn garbage_after_the_end_and_a_missing_end_are_errors() {
        let data = sample();
        for compressor in &COMPRESSORS[..3] {
            let source = packed(compressor, &data);
            let garbage = [source.as_slice(), b"garbage"].concat();
            let error = unpacked(&garbage, 1 << 20, 1 << 16).unwrap_err();
            assert_eq!(error.code(), Code::DecodeFailed, "{compressor:?}");
            let error = unpacked(&source[..source.len() - 1], 1 << 20, 1 << 16).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { .. }), "{compressor:?}: {error:?}");
            let mut damaged = source;
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0x55;
            assert!(unpacked(&damaged, 1 << 20, 1 << 16).is_err(), "{compressor:?}");
        }
        let odd = [packed(COMPRESSORS[2], &data), vec![0; 3]].concat();
        assert!(unpacked(&odd, 1 << 20, 1 << 16).is_err());
        assert!(matches!(Decoder::new(Format::Raw, 0).unwrap().finish(), Err(DecodeError::Empty)));
    }

    #[test]
    fn a_hostile_number_of_xz_blocks_needs_no_memory() {
        let resident_pages = || -> u64 {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse().unwrap()
        };
        let source = packed(&["xz", "--check=none", "--lzma2=dict=4KiB", "-c"], b"x");
        // The header of the stream has 12 bytes; that of the only block tells its own length (the .xz file
        // format, 3.1.1), and its data of one byte has five more, padded to eight.
        let (header, rest) = source.split_at(12);
        let block = &rest[..(usize::from(rest[0]) + 1) * 4 + 8];
        let mut decoder = Decoder::new(Format::Xz, 0).unwrap();
        let mut output = [0; 4096];
        assert_eq!(decoder.step(header, &mut output).unwrap().consumed, 12);
        let before = resident_pages();
        let chunk = block.repeat(1000);
        for _ in 0..2000 {
            let step = decoder.step(&chunk, &mut output).unwrap();
            assert_eq!(step, Step { consumed: chunk.len(), produced: 1000 });
        }
        // A list of two million blocks would have 8,000 pages; other tests run beside this one.
        let grown_pages = resident_pages().saturating_sub(before);
        assert!(grown_pages < 4000, "{grown_pages} pages more");
    }

    #[test]
    fn a_window_over_eight_mebibytes_is_refused_with_advice() {
        let data = sample();
        for compressor in [["zstd", "-19", "--long=27", "-c"].as_slice(), &["xz", "--lzma2=dict=64MiB", "-c"]]
        {
            let error = unpacked(&packed(compressor, &data), 1 << 20, 1 << 16).unwrap_err();
            assert_eq!(error.code(), Code::DecoderMemory, "{error:?}");
            assert!(error.to_string().contains("recompress with"));
        }
    }
}
