//! What the network gives to the assembly: the planned parts in order, and single parts on demand.

use std::ops::Range;

use bytes::{Buf as _, Bytes};
use tokio::sync::{mpsc, oneshot};

use super::super::InstallError;
use super::super::fetch::FetchError;
use super::super::parts::{Parts, Remote};
use super::super::patience::Patience;
use super::head::Front;
use crate::redact::display_url;

/// Pieces of up to some 400 KiB that wait to be used.
const PIECES: usize = 2;

/// Where the planned parts come from.
#[derive(Debug)]
pub enum Delivery {
    /// Only those, in the order in which they are needed.
    Parts(Box<Parts>),
    /// Everything, in the order of the file.
    Whole(Box<Front>),
}

impl Delivery {
    async fn next(&mut self) -> Result<Option<(u64, Bytes)>, InstallError> {
        match self {
            Self::Parts(parts) => parts.next().await,
            Self::Whole(front) => front.next().await,
        }
    }
}

/// A part that is asked for although it was not planned.
#[derive(Debug)]
struct Demand {
    part: Range<u64>,
    answer: oneshot::Sender<Result<Vec<u8>, FetchError>>,
}

impl Demand {
    /// `patience` is with all of them together: each is small.
    async fn meet(self, remote: &Remote, patience: &mut Patience) {
        patience.resume();
        let read = remote.read(self.part).await.and_then(|bytes| match patience.suffices(bytes.len()) {
            true => Ok(bytes),
            false => Err(patience.trickle(display_url(&remote.uri), None)),
        });
        // Whoever asked may have been stopped meanwhile.
        drop(self.answer.send(read));
    }
}

/// The network's end.
#[derive(Debug)]
pub struct Supplier {
    pieces: mpsc::Sender<(u64, Bytes)>,
    demands: mpsc::Receiver<Demand>,
}

impl Supplier {
    /// Fetches until nobody takes anything any more.
    ///
    /// # Errors
    /// The source.
    pub async fn run(self, mut delivery: Delivery, remote: &Remote) -> Result<(), InstallError> {
        let Self { pieces, mut demands } = self;
        let mut patience = Patience::new(remote.limits);
        loop {
            tokio::select! {
                demand = demands.recv() => match demand {
                    Some(demand) => demand.meet(remote, &mut patience).await,
                    None => return Ok(()),
                },
                room = pieces.reserve() => {
                    let Ok(room) = room else { return Ok(()) };
                    tokio::select! {
                        piece = delivery.next() => match piece? {
                            Some(piece) => room.send(piece),
                            None => break,
                        },
                        () = pieces.closed() => return Ok(()),
                    }
                }
            }
        }
        // Whoever waits for more of them has to know that there are none.
        drop(pieces);
        while let Some(demand) = demands.recv().await {
            demand.meet(remote, &mut patience).await;
        }
        Ok(())
    }
}

/// The assembly's end; blocks its thread.
#[derive(Debug)]
pub struct Supply {
    pieces: mpsc::Receiver<(u64, Bytes)>,
    demands: mpsc::Sender<Demand>,
    /// What is left of the last piece.
    left: Bytes,
    /// Of those bytes in the file.
    offset: u64,
    /// Everything comes by, planned or not.
    pub is_whole: bool,
}

/// Both ends.
#[must_use]
pub fn supply(is_whole: bool) -> (Supplier, Supply) {
    let (piece_sender, pieces) = mpsc::channel(PIECES);
    let (demand_sender, demands) = mpsc::channel(1);
    (
        Supplier { pieces: piece_sender, demands },
        Supply { pieces, demands: demand_sender, left: Bytes::new(), offset: 0, is_whole },
    )
}

impl Supply {
    /// A planned part, into `out`; parts that came before it are not wanted any more.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] where nothing more comes: the plan ended, or the network's end knows why.
    pub fn take(&mut self, part: Range<u64>, out: &mut Vec<u8>) -> Result<(), InstallError> {
        out.clear();
        let mut next = part.start;
        while next < part.end {
            let skipped = next.checked_sub(self.offset).and_then(|skipped| usize::try_from(skipped).ok());
            match skipped.filter(|skipped| *skipped < self.left.len()) {
                Some(skipped) => self.advance(skipped),
                None => {
                    (self.offset, self.left) =
                        self.pieces.blocking_recv().ok_or(InstallError::Interrupted)?;
                    continue;
                }
            }
            let wanted = usize::try_from(part.end - next).unwrap_or(usize::MAX).min(self.left.len());
            out.extend_from_slice(self.left.split_at(wanted).0);
            self.advance(wanted);
            next += wanted as u64;
        }
        Ok(())
    }

    fn advance(&mut self, len: usize) {
        self.left.advance(len);
        self.offset += len as u64;
    }

    /// A part that was not planned, or came damaged.
    ///
    /// # Errors
    /// The source.
    pub fn demand(&mut self, part: Range<u64>) -> Result<Vec<u8>, InstallError> {
        let (answer, answered) = oneshot::channel();
        self.demands.blocking_send(Demand { part, answer }).map_err(|_| InstallError::Interrupted)?;
        Ok(answered.blocking_recv().map_err(|_| InstallError::Interrupted)??)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::parts::tests::tens;
    use super::*;

    #[tokio::test]
    async fn parts_on_demand_that_are_each_over_soon_are_not_waited_for_for_ever() {
        // 33 bytes a second, of 256.
        let remote = tens(Duration::from_millis(300)).await;
        let (supplier, mut supply) = supply(false);
        let nothing = Delivery::Parts(Box::new(Parts::new(remote.clone(), [].into())));
        let demanding = tokio::task::spawn_blocking(move || {
            (0..100).try_for_each(|number| supply.demand(number * 5000..number * 5000 + 10).map(drop))
        });
        supplier.run(nothing, &remote).await.unwrap();
        match demanding.await.unwrap() {
            Err(InstallError::Fetch(FetchError::Trickle { bytes, .. })) => {
                assert!((10..256).contains(&bytes))
            }
            other => panic!("{other:?}"),
        }
    }
}
