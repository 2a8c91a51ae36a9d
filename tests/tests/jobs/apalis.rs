//! The layer for workers of apalis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use oncekey::consumer::MessageKey;
use oncekey::consumer::apalis::OncePerTask;
use oncekey::consumer::apalis::apalis_core::error::{AbortError, BoxDynError, RetryAfterError};
use oncekey::consumer::apalis::apalis_core::layers::{Layer as _, Service};
use oncekey::consumer::apalis::apalis_core::task::Task;
use oncekey::consumer::apalis::apalis_core::task::builder::TaskBuilder;
use oncekey::consumer::apalis::apalis_core::task::status::Status;
use oncekey::consumer::apalis::apalis_core::task::task_fn::task_fn;
use oncekey::{Engine, Key};
use tokio::sync::Notify;

use crate::tasks::engine;

type Mail = (u64, &'static str);

fn once(engine: Engine) -> OncePerTask<impl Fn(&Task<Mail>) -> Result<MessageKey, oncekey::consumer::IdentifyError>> {
    OncePerTask::new(engine, |task: &Task<Mail>| match task.args.1 {
        "unreadable" => Err("it has no number".into()),
        "panics in its key" => panic!("as told"),
        _ => Ok(MessageKey::new(Key::new("mail", task.args.0)?, &task.args)?),
    })
}

/// Calls the worker. The result has the status that a storage reads, even if the task's function did not run.
async fn call<S>(worker: &mut S, mail: Mail) -> Result<S::Response, BoxDynError>
where
    S: Service<Task<Mail>, Error = BoxDynError>,
{
    let task = TaskBuilder::new(mail).build();
    let status = task.raw_status().clone();
    let called = worker.call(task).await;
    let expected = match &called {
        Ok(_) => Some(Status::Done),
        Err(error) if error.is::<AbortError>() => Some(Status::Killed),
        Err(error) if error.is::<RetryAfterError>() => Some(Status::Pending),
        // The worker's lifecycle writes this status.
        Err(_) => None,
    };
    assert!(expected.is_none_or(|expected| status.load() == expected), "{:?} for {mail:?}", status.load());
    called
}

#[actix_rt::test]
async fn j01_a_task_of_apalis_does_its_work_once() {
    let ran = Arc::new(AtomicU32::new(0));
    let counted = ran.clone();
    let mut worker = once(engine()).layer(task_fn(move |mail: Mail| {
        let counted = counted.clone();
        async move {
            let tries = counted.fetch_add(1, Ordering::SeqCst);
            match mail.1 {
                "fails once" if tries == 0 => Err(std::io::Error::other("not yet")),
                _ => Ok(format!("sent {}", mail.0)),
            }
        }
    }));
    // apalis retries its own errors.
    let failed = call(&mut worker, (1, "fails once")).await.unwrap_err();
    assert_eq!(failed.to_string(), "not yet");
    for _ in 0..3 {
        assert_eq!(call(&mut worker, (1, "fails once")).await.unwrap(), "sent 1");
    }
    assert_eq!(ran.load(Ordering::SeqCst), 2);
    // No retry helps these.
    for mail in [(1, "another mail"), (2, "unreadable"), (2, "panics in its key")] {
        assert!(call(&mut worker, mail).await.unwrap_err().is::<AbortError>(), "{mail:?}");
    }
    assert_eq!(ran.load(Ordering::SeqCst), 2);
}

#[actix_rt::test]
async fn j02_a_task_of_apalis_that_is_in_flight_elsewhere_is_taken_again() {
    let engine = engine();
    let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (began, go) = (began.clone(), go.clone());
        task_fn(move |mail: Mail| {
            let (began, go) = (began.clone(), go.clone());
            async move {
                began.notify_one();
                go.notified().await;
                Ok::<u64, std::io::Error>(mail.0)
            }
        })
    };
    let layer = once(engine);
    let mut first = layer.layer(slow.clone());
    let mut second = layer.layer(slow);
    let running = actix_rt::spawn(async move { call(&mut first, (1, "work")).await.unwrap() });
    began.notified().await;
    assert!(call(&mut second, (1, "work")).await.unwrap_err().is::<RetryAfterError>());
    go.notify_one();
    assert_eq!(running.await.unwrap(), 1);
    assert_eq!(call(&mut second, (1, "work")).await.unwrap(), 1);
}
