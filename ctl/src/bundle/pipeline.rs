//! Work on all cores whose results are taken in order.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::Failure;

/// Results that may wait for their turn, for each core: what is ahead is held back.
const AHEAD: usize = 4;

/// Does `work` for 0, 1, … `count`, and gives each result to `take` in that order. The first failure ends it.
pub fn in_order<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, Failure> + Sync,
    mut take: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (permits, permit) = sync_channel::<()>(cores * AHEAD);
    let numbers = Mutex::new(0..count);
    let (results, result) = sync_channel(cores * AHEAD);
    thread::scope(|scope| {
        for _ in 0..cores {
            let (results, permits, work, numbers) = (results.clone(), permits.clone(), &work, &numbers);
            scope.spawn(move || {
                // Ends when the taker does, for it drops the other ends.
                while permits.send(()).is_ok() {
                    let Some(number) = numbers.lock().ok().and_then(|mut numbers| numbers.next()) else {
                        return;
                    };
                    if results.send((number, work(number))).is_err() {
                        return;
                    }
                }
            });
        }
        drop((results, permits));
        let mut waiting = BTreeMap::new();
        for number in 0..count {
            let done = loop {
                if let Some(done) = waiting.remove(&number) {
                    break done;
                }
                let (number, done) = result.recv().map_err(|_| Failure::Thread)?;
                waiting.insert(number, done);
            };
            // One is through: one more may begin.
            let _ = permit.try_recv();
            take(done?)?;
        }
        // Both ends go here, on every way out: no worker waits for ever.
        drop((result, permit));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_failure_ends_all() {
        let mut taken = Vec::new();
        let squares = |number: usize| Ok(number * number);
        let mut keep = |square| {
            taken.push(square);
            Ok(())
        };
        in_order(1000, squares, &mut keep).unwrap();
        assert_eq!(taken, (0..1000).map(|number| number * number).collect::<Vec<_>>());
        let fails = |number| if number == 500 { Err(Failure::Thread) } else { Ok(number) };
        let mut seen = 0;
        let failed = in_order(100_000, fails, |_| {
            seen += 1;
            Ok(())
        });
        assert!(matches!(failed, Err(Failure::Thread)));
        assert_eq!(seen, 500);
    }
}
