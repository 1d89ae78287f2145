use twinboot::install::decode::{DecodeError, Decoder, Format};

/// What one input may become here. More is no finding: a slot is larger.
const IMAGE_BYTES_MAX: usize = 4 << 20;

/// Compressed images: the same comes out in pieces of any size, and never more than there is room for.
pub fn images(data: &[u8]) {
    let whole = decoded(data, data.len().max(1), 256 << 10);
    let in_pieces = decoded(data, 1 + data.len() % 61, 1009);
    match (&whole, &in_pieces) {
        (Ok(one), Ok(other)) => {
            let (one, other) = (&one.bytes, &other.bytes);
            assert!(one == other, "{} and {} bytes", one.len(), other.len());
        }
        (Err(_), Err(_)) => {}
        // An empty last block of a frame that was to have content: libzstd looks only where it has the frame whole.
        (Err(_), Ok(image)) if image.has_other_size_than_stated(data) => {}
        // Where garbage ends a file that fills the room, only one of both may have come to see it.
        (Ok(image), Err(_)) | (Err(_), Ok(image)) => {
            let is_full = image.bytes.len() >= IMAGE_BYTES_MAX;
            assert!(is_full, "{:?} {:?}", whole.is_ok(), in_pieces.as_ref().err());
        }
    }
    if Format::of(data) == Format::Raw && !data.is_empty() {
        assert!(whole.is_ok_and(|image| data.starts_with(&image.bytes)));
    }
}

/// What came out, or as much of it as there is room for.
struct Image {
    bytes: Vec<u8>,
    /// Where frames ended: in the source, and in the image.
    ends: Vec<(usize, usize)>,
}

impl Image {
    /// Whether a frame of zstd became more or less than its header states.
    fn has_other_size_than_stated(&self, source: &[u8]) -> bool {
        let begins = std::iter::once(&(0, 0)).chain(&self.ends);
        begins.zip(&self.ends).any(|((begin, before), (_, after))| {
            stated_bytes(&source[*begin..]).is_some_and(|stated| stated != (after - before) as u64)
        })
    }
}

/// The content size in a frame's header, where it has one (RFC 8878, 3.1.1.1).
fn stated_bytes(frame: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = frame else { return None };
    let is_single_segment = descriptor & 0x20 != 0;
    let window_bytes = usize::from(!is_single_segment);
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (size_bytes, least) = match descriptor >> 6 {
        0 if is_single_segment => (1, 0),
        0 => return None,
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let field = rest.get(window_bytes + dictionary_bytes..)?.get(..size_bytes)?;
    let mut stated = [0; 8];
    stated[..size_bytes].copy_from_slice(field);
    Some(u64::from_le_bytes(stated).wrapping_add(least))
}

fn decoded(source: &[u8], input_bytes: usize, output_bytes: usize) -> Result<Image, DecodeError> {
    let mut decoder = Decoder::new(Format::of(source), 0)?;
    let (mut data, mut output) = (source, vec![0; output_bytes]);
    let mut image = Image { bytes: Vec::new(), ends: Vec::new() };
    loop {
        let input = &data[..data.len().min(input_bytes)];
        let step = decoder.step(input, &mut output)?;
        assert!(step.consumed <= input.len() && step.produced <= output.len());
        image.bytes.extend_from_slice(&output[..step.produced]);
        data = &data[step.consumed..];
        if decoder.at_boundary() {
            image.ends.push((source.len() - data.len(), image.bytes.len()));
        }
        if image.bytes.len() >= IMAGE_BYTES_MAX {
            image.bytes.truncate(IMAGE_BYTES_MAX);
            return Ok(image);
        }
        if data.is_empty() && (step.produced < output.len() || decoder.at_boundary()) {
            decoder.finish()?;
            return Ok(image);
        }
    }
}
