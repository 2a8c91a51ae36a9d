//! The guides: what the engine promises, which store to choose, how to operate the engine and how to extend it.

#[cfg(feature = "web")]
#[doc = include_str!("../guide/tutorial.md")]
pub mod tutorial {}

#[doc = include_str!("../guide/guarantees.md")]
pub mod guarantees {}

#[cfg(feature = "web")]
#[doc = include_str!("../guide/answers.md")]
pub mod answers {}

#[cfg(feature = "web")]
#[doc = include_str!("../guide/http.md")]
pub mod http {}

#[doc = include_str!("../guide/choosing_a_store.md")]
pub mod choosing_a_store {}

#[doc = include_str!("../guide/jobs_and_threads.md")]
pub mod jobs_and_threads {}

#[cfg(feature = "consumer")]
#[doc = include_str!("../guide/consumers.md")]
pub mod consumers {}

#[cfg(feature = "redis-streams")]
#[doc = include_str!("../guide/redis_streams.md")]
pub mod redis_streams {}

#[cfg(feature = "rabbitmq")]
#[doc = include_str!("../guide/rabbitmq.md")]
pub mod rabbitmq {}

#[cfg(feature = "nats")]
#[doc = include_str!("../guide/nats.md")]
pub mod nats {}

#[cfg(feature = "consumer")]
#[doc = include_str!("../guide/writing_a_source.md")]
pub mod writing_a_source {}

#[doc = include_str!("../guide/steps.md")]
pub mod steps {}

#[doc = include_str!("../guide/operations.md")]
pub mod operations {}

#[cfg(feature = "web")]
#[doc = include_str!("../guide/stuck_keys.md")]
pub mod stuck_keys {}

#[doc = include_str!("../guide/security.md")]
pub mod security {}

#[doc = include_str!("../guide/writing_a_backend.md")]
pub mod writing_a_backend {}

#[doc = include_str!("../guide/proof.md")]
pub mod proof {}
