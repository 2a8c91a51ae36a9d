//! Job processors and event consumers, which take messages from a broker and process each one once.
//!
//! Brokers deliver at least once. A [`Processor`] takes messages from a [`Source`] and runs a [`Job`] for each, under
//! the key that the job reads from the message. It then settles the message with one [`Disposition`]: acknowledge,
//! retry later, or dead letter.
//!
//! ```
//! # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use oncekey::consumer::{MessageKey, Processor, in_process, job};
//! use oncekey::{Engine, Key};
//! use oncekey_backends::MemoryBackend;
//!
//! let engine = Engine::builder(MemoryBackend::new()).start()?;
//! let (orders, source) = in_process::channel::<u64>(100);
//! let mail = job(
//!     |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
//!     |call, order| async move {
//!         call.run(move |_claim| async move { Ok::<_, std::io::Error>(format!("mail for order {order}")) }).await
//!     },
//! );
//! orders.send(17).await?;
//! orders.send(17).await?; // delivered again
//! drop(orders);
//! let processed = Processor::new(engine, source, mail).run(std::future::pending()).await;
//! assert_eq!((processed.ran, processed.replayed), (1, 1));
//! # Ok(()) }
//! ```
//!
//! | what | async | plain threads |
//! |---|---|---|
//! | the work | [`Job`], or a closure with [`job`] | [`BlockingJob`], or a closure with [`blocking_job`] |
//! | the consumer | [`Processor`] | [`BlockingProcessor`] |
//! | where messages come from | a [`Source`]: [`in_process`], Redis Streams, RabbitMQ, NATS JetStream, or your own | a crossbeam channel |
//!
//! The guide to [consumers](crate::guide::consumers) explains what each choice guarantees.

#[cfg(feature = "apalis")]
pub mod apalis;
mod backoff;
mod blocking;
mod call;
mod disposition;
mod fault;
mod guard;
mod handling;
mod job;
mod lanes;
mod later;
mod message;
mod pause;
mod processor;
mod retry;
mod source;
mod sources;
mod tally;
mod tap;

pub use blocking::{BlockingJob, BlockingProcessed, BlockingProcessor, BlockingProcessorBuilder, blocking_job};
/// The crate whose channels [`BlockingProcessor`] and [`EventTap`] use.
pub use crossbeam_channel;

pub use call::{Call, JobError, JobResult};
pub use disposition::Disposition;
pub use job::{IdentifyError, Job, MessageKey, job};
pub use message::Message;
pub use processor::{Processed, Processor};
pub use retry::{OnIndeterminate, RetryPolicy};
pub use source::{Delivery, Source};
pub use sources::in_process;
#[cfg(feature = "nats")]
pub use sources::nats;
#[cfg(feature = "rabbitmq")]
pub use sources::rabbitmq;
#[cfg(feature = "redis-streams")]
pub use sources::redis_streams;
pub use tap::{EventTap, TappedEvent, event_channel};
