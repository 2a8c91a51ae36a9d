//! Reads request bodies, watches whether an inner service reads them, and examines response bodies.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::header::{self, HeaderMap};
use bytes::{Bytes, BytesMut};
use futures_util::stream::Stream;
use futures_util::{FutureExt as _, StreamExt as _, future};
use tokio::time::{Instant, timeout, timeout_at};

use super::IdempotencyError;
use super::guard::RequestGuard;
use crate::panics;

/// The most bytes that the guard reads of a refused body.
const DRAIN_LIMIT: usize = 64 << 20;

/// How long the guard waits for the end of a response that a compressing middleware has turned into a stream.
const COMPRESSION_LIMIT: Duration = Duration::from_secs(1);

/// Reads the whole body, up to `limit` bytes and within `time`.
pub(super) async fn read(
    request: &mut ServiceRequest,
    limit: usize,
    time: Duration,
) -> Result<Bytes, IdempotencyError> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut payload = request.take_payload();
    if announced.is_some_and(|length: u64| length > limit as u64) {
        drain(payload, time).await;
        return Err(IdempotencyError::RequestTooLarge(limit));
    }
    let read = {
        let mut gathering = pin!(gather(&mut payload, limit));
        // Most bodies have arrived with their head. These need no timer.
        match gathering.as_mut().now_or_never() {
            Some(read) => Ok(read),
            None => timeout(time, gathering).await,
        }
    };
    match read {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => {
            drain(payload, time).await;
            Err(IdempotencyError::RequestTooLarge(limit))
        }
        Ok(Err(_)) => Err(IdempotencyError::RequestUnreadable),
        Err(_) => Err(IdempotencyError::RequestTimeout(time)),
    }
}

/// Returns `None` if the body is longer than `limit`.
async fn gather(payload: &mut Payload, limit: usize) -> Result<Option<Bytes>, PayloadError> {
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk?;
        if first.len() + gathered.len() + chunk.len() > limit {
            return Ok(None);
        }
        // Most bodies arrive in one piece, which this avoids copying.
        if first.is_empty() && gathered.is_empty() {
            first = chunk;
        } else {
            gathered.extend_from_slice(&std::mem::take(&mut first));
            gathered.extend_from_slice(&chunk);
        }
    }
    Ok(Some(if gathered.is_empty() { first } else { gathered.freeze() }))
}

/// Continues reading for a limited time, so that a client that sends its whole body first receives the answer instead
/// of a reset.
pub(super) async fn drain(mut payload: Payload, time: Duration) {
    let draining = async {
        let mut drained = 0;
        while let Some(Ok(chunk)) = payload.next().await {
            drained += chunk.len();
            if drained > DRAIN_LIMIT {
                return;
            }
        }
    };
    // If anything is left, the server closes the connection.
    let _ = timeout(time, draining).await;
}

/// Reads an upload to its end, as its handler would have done. It stops early only if the client sends nothing for
/// `idle`. So the retry of a long upload takes as long as the upload did.
pub(super) async fn drain_upload(mut payload: Payload, idle: Duration) {
    while let Ok(Some(Ok(_))) = timeout(idle, payload.next()).await {}
}

/// The request body that the inner service reads. It notes when reading has begun, and when the body has been read to
/// its end.
pub(super) struct Watched {
    body: Body,
    guard: Rc<RequestGuard>,
}

pub(super) enum Body {
    /// The guard has read it.
    Read(Bytes),
    /// It streams to the inner service.
    Unread(Payload),
}

impl Watched {
    pub(super) fn payload(body: Body, guard: Rc<RequestGuard>) -> Payload {
        Payload::Stream { payload: Box::pin(Self { body, guard }) }
    }
}

impl Stream for Watched {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.guard.touch();
        match &mut self.body {
            Body::Read(bytes) if bytes.is_empty() => {
                self.guard.note_body_end();
                Poll::Ready(None)
            }
            Body::Read(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Body::Unread(payload) => payload.poll_next_unpin(context),
        }
    }
}

/// What the guard found out about a response's body.
pub(super) enum Found<B> {
    /// The complete body.
    Whole(Bytes),
    /// The body is too large to keep, or a stream. It goes to its caller unchanged.
    Passing(B),
    /// Like `Passing`, but a part of the body was already read.
    Begun(BoxBody),
    /// The body ended with an error or a panic.
    Broken,
}

/// Finds out whether a body can be kept.
///
/// The guard never waits for a stream: it may be endless, and its first caller must get it at once. The exception is an
/// encoded response. A `Compress` inside the guard turns a complete body into a stream, whose end comes soon.
///
/// The body is user code. If its panic reached the server, the server would close the connection without an answer. So
/// a panic counts as a broken body.
pub(super) async fn look_into<B: MessageBody + 'static>(body: B, headers: &HeaderMap, limit: usize) -> Found<B> {
    AssertUnwindSafe(find_out(body, headers, limit)).catch_unwind().await.unwrap_or_else(|payload| {
        panics::discard(payload);
        tracing::error!(target: "oncekey", "the body of a handler's response panicked");
        Found::Broken
    })
}

async fn find_out<B: MessageBody + 'static>(body: B, headers: &HeaderMap, limit: usize) -> Found<B> {
    match body.size() {
        BodySize::None | BodySize::Sized(0) => Found::Whole(Bytes::new()),
        BodySize::Sized(size) if size <= limit as u64 => match body.try_into_bytes() {
            Ok(bytes) => Found::Whole(bytes),
            Err(body) => match collect(Box::pin(body), limit, None).await {
                Collected::Whole(bytes) if bytes.len() as u64 == size => Found::Whole(bytes),
                // The length differs from the announced one, for example because a file changed during the read. The
                // server would not have sent this as a complete response either.
                Collected::Whole(_) | Collected::Rest(_) | Collected::Broken => Found::Broken,
            },
        },
        BodySize::Stream if is_compressed(headers) => {
            match collect(Box::pin(body), limit, Some(Instant::now() + COMPRESSION_LIMIT)).await {
                Collected::Whole(bytes) => Found::Whole(bytes),
                Collected::Rest(rest) => Found::Begun(BoxBody::new(rest)),
                Collected::Broken => Found::Broken,
            }
        }
        BodySize::Sized(_) | BodySize::Stream => Found::Passing(body),
    }
}

fn is_compressed(headers: &HeaderMap) -> bool {
    let is_events = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
    headers.contains_key(header::CONTENT_ENCODING) && !is_events
}

enum Collected<B> {
    Whole(Bytes),
    Rest(Begun<B>),
    Broken,
}

async fn collect<B: MessageBody>(mut body: Pin<Box<B>>, limit: usize, until: Option<Instant>) -> Collected<B> {
    let (mut chunks, mut len) = (VecDeque::new(), 0);
    loop {
        let next = future::poll_fn(|context| body.as_mut().poll_next(context));
        let next = match until {
            Some(until) => match timeout_at(until, next).await {
                Ok(next) => next,
                Err(_) => return Collected::Rest(Begun { chunks, body }),
            },
            None => next.await,
        };
        match next {
            Some(Ok(chunk)) => {
                len += chunk.len();
                chunks.push_back(chunk);
                if len > limit {
                    return Collected::Rest(Begun { chunks, body });
                }
            }
            Some(Err(_)) => return Collected::Broken,
            None => break,
        }
    }
    match chunks.len() {
        1 => Collected::Whole(chunks.pop_front().unwrap_or_default()),
        _ => Collected::Whole(Vec::from(chunks).concat().into()),
    }
}

/// A stream of which a part was already read. It returns that part first, then the rest.
struct Begun<B> {
    chunks: VecDeque<Bytes>,
    body: Pin<Box<B>>,
}

impl<B: MessageBody> MessageBody for Begun<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        match self.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(chunk))),
            None => self.body.as_mut().poll_next(context),
        }
    }
}
