use twinboot::install::decode::{DecodeError, Decoder, Format};

/// What one input may become here. More is no finding: a slot is larger.
const IMAGE_BYTES_MAX: usize = 4 << 20;

/// Compressed images: the same comes out in pieces of any size, and never more than there is room for.
pub fn images(data: &[u8]) {
    let whole = decoded(data, data.len().max(1), 256 << 10);
    let in_pieces = decoded(data, 1 + data.len() % 61, 1009);
    match (&whole, &in_pieces) {
        (Ok(one), Ok(other)) => assert!(one == other, "{} and {} bytes", one.len(), other.len()),
        (Err(_), Err(_)) => {}
        // An empty last block of a frame that was to have content: libzstd looks only where it has the frame whole.
        (Err(_), Ok(_)) if Format::of(data) == Format::Zstd => {}
        // Where garbage ends a file that fills the room, only one of both may have come to see it.
        (Ok(image), Err(_)) | (Err(_), Ok(image)) => {
            assert!(image.len() >= IMAGE_BYTES_MAX, "{:?} {:?}", whole.is_ok(), in_pieces.as_ref().err());
        }
    }
    if Format::of(data) == Format::Raw && !data.is_empty() {
        assert!(whole.is_ok_and(|image| data.starts_with(&image)));
    }
}

/// The image, or as much of it as there is room for.
fn decoded(mut data: &[u8], input_bytes: usize, output_bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(Format::of(data), 0)?;
    let (mut image, mut output) = (Vec::new(), vec![0; output_bytes]);
    loop {
        let input = &data[..data.len().min(input_bytes)];
        let step = decoder.step(input, &mut output)?;
        assert!(step.consumed <= input.len() && step.produced <= output.len());
        image.extend_from_slice(&output[..step.produced]);
        data = &data[step.consumed..];
        if image.len() >= IMAGE_BYTES_MAX {
            image.truncate(IMAGE_BYTES_MAX);
            return Ok(image);
        }
        if data.is_empty() && (step.produced < output.len() || decoder.at_boundary()) {
            decoder.finish()?;
            return Ok(image);
        }
    }
}
