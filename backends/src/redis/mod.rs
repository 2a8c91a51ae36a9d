#![doc = include_str!("../../guide/redis.md")]

mod acquire;
mod address;
mod answer;
mod backend;
mod clock;
mod cluster;
mod error;
mod family;
mod family_script;
mod family_step;
mod field;
mod link;
mod options;
mod rights;
mod scan;
mod script;
mod settings;
mod single;
mod slot;
mod step;
mod value;
mod watch;

pub use backend::RedisBackend;
pub use error::RedisOpenError;
pub use options::RedisBuilder;
#[cfg(fuzzing)]
pub(crate) use value::read_for_fuzzing as read_value;
