//! Stores for the [Oncekey](oncekey) idempotency engine.
