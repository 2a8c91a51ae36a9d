//! The faults of the processes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use super::world::{Fault, Shared, World};
use super::{CHAOS, LEASE, Process, SETTLING_LIMIT};

/// Crashes, pauses and shuts down processes, and takes the store away, one after another.
pub(super) async fn strike(world: Shared, processes: Arc<Mutex<Vec<Process>>>) {
    let end = Instant::now() + CHAOS;
    if world.with(|world| world.calm) {
        return sleep(CHAOS).await;
    }
    while Instant::now() < end {
        sleep(Duration::from_millis(100) + world.up_to(1_500)).await;
        let (kind, number) = world.with(|world| {
            let count = processes.lock().unwrap().len();
            (world.chance.random_range(0..11), world.chance.random_range(0..count))
        });
        let process = processes.lock().unwrap()[number].clone();
        match kind {
            0..3 => {
                world.with(|world| world.counts(Fault::Crash));
                world.dies(&process.life);
            }
            3..5 => {
                world.with(|world| world.counts(Fault::Shutdown));
                process.engine.shutdown(2 * LEASE).await;
                world.dies(&process.life);
            }
            10 => {
                world.with(World::sets_its_clock_back);
                continue;
            }
            5..7 => {
                let long = Duration::from_millis(500) + world.up_to(2 * SETTLING_LIMIT.as_millis() as u64);
                world.with(|world| world.goes_away(long));
                continue;
            }
            _ => {
                let pause = world.up_to(3 * LEASE.as_millis() as u64);
                world.with(|world| world.pauses(number, pause));
                continue;
            }
        }
        drop(process);
        sleep(world.up_to(500)).await;
        let reborn = Process::start(&world, number);
        processes.lock().unwrap()[number] = reborn;
    }
}
