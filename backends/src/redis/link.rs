//! An arbiter's connection: opened on demand, shared by all calls in flight, and dropped when the server goes silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oncekey::backend::{StepState, StoreError};
use parking_lot::Mutex;
use redis::aio::{ConnectionManager, PubSub};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::SentinelClient;
use redis::{Client, Cmd, Pipeline, RedisError, RedisResult, ServerError, Value};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::address::{Address, Topology, without_timeouts};
use super::clock::{Clock, Now, read_time};
use super::cluster;
use super::error::Failure;
use super::options::Accepts;
use super::settings::{setting, vet};
use super::single::Single;

/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// If a call is dropped before its answer, its connection is suspect only if it has been silent for this long.
const SUSPICIOUS: Duration = Duration::from_millis(200);

/// While one node of a cluster is silent and others answer, the connection is kept at least this long. Then a new
/// connection is made, which finds out whether the silent node's slots have moved. All calls wait for it.
const KEPT_WHILE_OTHERS_ANSWER: Duration = Duration::from_secs(5);

/// How often a connection that reconnects by itself is asked for the server's clock and policy.
const GREETED_EVERY: Duration = Duration::from_secs(10);

/// Another server has taken over from a read-only server. The next connection may reach the new one.
const DEMOTED: &str = "the server can't be written to";

/// Time limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    pub(super) response: Duration,
}

/// A connection. Clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Single(Single),
    Cluster(ClusterConnection),
}

/// What creates connections.
enum Maker {
    Single(Client),
    Sentinel(SentinelClient),
    Cluster(ClusterClient),
    /// The application's own connection, which reconnects by itself.
    Managed(ConnectionManager),
}

/// The connection to the store. It belongs to one arbiter, because a connection lives on the runtime that opened it.
pub(super) struct Link {
    address: Address,
    limits: Limits,
    accepts: Accepts,
    current: Mutex<Current>,
    clock: Arc<Clock>,
    /// Whether the store has been opened, by this link or an earlier one. Only then does the link log that it can't
    /// connect. Until then, opening the store returns the error.
    is_open: AtomicBool,
    /// Held while a connection is made: one call connects, and the others wait for the result.
    connecting: tokio::sync::Mutex<Option<Maker>>,
}

struct Current {
    connection: Option<Connection>,
    /// Counts connections, so that a call drops only the connection that it used.
    number: u64,
    made: Instant,
    heard: Instant,
    /// The number of failed attempts since the last success, and the last failure.
    failures: u32,
    last_failure: Option<(Instant, Failure)>,
}

impl Link {
    pub(super) fn accepts(&self) -> Accepts {
        self.accepts
    }

    pub(super) fn new(address: Address, limits: Limits, accepts: Accepts) -> Self {
        let now = Instant::now();
        let current = Current { connection: None, number: 0, made: now, heard: now, failures: 0, last_failure: None };
        let (current, connecting) = (Mutex::new(current), tokio::sync::Mutex::new(None));
        Self { address, limits, accepts, current, clock: Arc::default(), is_open: AtomicBool::new(false), connecting }
    }

    /// Creates a link of the same kind for another arbiter.
    pub(super) fn another(&self) -> Self {
        let another = Self::new(self.address.clone(), self.limits, self.accepts);
        another.is_open.store(true, Ordering::Relaxed);
        another
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.address.topology, Topology::Cluster)
    }

    /// Returns the current connection, or a new one.
    async fn connection(&self) -> Result<(u64, Connection), Failure> {
        let ready = |current: &Current| {
            let found = current.connection.clone().filter(|_| !self.is_to_be_greeted_again(current));
            found.map(|connection| (current.number, connection))
        };
        if let Some(found) = ready(&self.current.lock()) {
            return Ok(found);
        }
        let asked = Instant::now();
        let mut maker = self.connecting.lock().await;
        let pause = {
            let current = self.current.lock();
            if let Some(found) = ready(&current) {
                return Ok(found);
            }
            match &current.last_failure {
                // A call that waited while another call tried to connect gets that call's error.
                Some((at, error)) if *at > asked => return Err(error.clone()),
                Some((at, _)) => (*at + pause_after(current.failures)).saturating_duration_since(asked),
                None => Duration::ZERO,
            }
        };
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let made = match timeout(self.limits.connect, self.make(&mut maker)).await {
            Ok(made) => made,
            Err(_) => Err(Failure::Refused(StoreError::unavailable(format!(
                "no connection within {:?}",
                self.limits.connect
            )))),
        };
        let mut current = self.current.lock();
        match made {
            Ok(connection) => {
                current.number += 1;
                (current.failures, current.last_failure) = (0, None);
                (current.made, current.heard) = (Instant::now(), Instant::now());
                current.connection = Some(connection.clone());
                self.is_open.store(true, Ordering::Relaxed);
                Ok((current.number, connection))
            }
            Err(error) => {
                if current.failures == 0 && self.is_open.load(Ordering::Relaxed) {
                    let error = StoreError::from(error.clone());
                    warn!(server = %self.address.name(), %error, "Redis can't be reached; it is tried again and again");
                }
                current.failures = current.failures.saturating_add(1);
                current.last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Returns whether a connection that reconnects by itself may have reached another server since it was last
    /// checked.
    fn is_to_be_greeted_again(&self, current: &Current) -> bool {
        matches!(self.address.topology, Topology::Managed(_)) && current.made.elapsed() >= GREETED_EVERY
    }

    async fn make(&self, maker: &mut Option<Maker>) -> Result<Connection, Failure> {
        let mut connection = self.reach(maker).await.map_err(Failure::of_connecting)?;
        match &mut connection {
            Connection::Single(connection) => self.greet(connection).await?,
            Connection::Cluster(connection) => self.read_clocks(connection).await.map_err(Failure::of_connecting)?,
        }
        Ok(connection)
    }

    async fn reach(&self, maker: &mut Option<Maker>) -> RedisResult<Connection> {
        let maker = match maker {
            Some(maker) => maker,
            None => maker.insert(self.maker()?),
        };
        Ok(match maker {
            Maker::Single(client) => Connection::Single(open(client).await?),
            Maker::Sentinel(sentinels) => Connection::Single(open(&sentinels.async_get_client().await?).await?),
            Maker::Managed(manager) => Connection::Single(Single::Managed(manager.clone())),
            Maker::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }

    /// Asks a server for its clock, which every claim needs, and for its policy: it may be another server than the one
    /// that was checked when the store was opened.
    async fn greet(&self, connection: &mut Single) -> Result<(), Failure> {
        let mut questions = Pipeline::with_capacity(2);
        questions.add_command(redis::cmd("TIME")).add_command(setting("maxmemory-policy"));
        let answers = connection.send_packed_commands(&questions, 0, 2).await.map_err(Failure::of_connecting)?;
        let Ok([time, policy]) = <[Value; 2]>::try_from(answers) else {
            return Err(Failure::Refused(StoreError::unavailable("Redis gave the wrong count of answers")));
        };
        self.read_clock(read_time(time).map_err(Failure::of_connecting)?);
        vet(&self.address.name(), policy, self.accepts).map(drop).map_err(Failure::Unfit)
    }

    /// A new master's clock may be behind the old one's, and fencing tokens must not go back.
    fn read_clock(&self, time: Duration) {
        match self.address.topology {
            Topology::Single => self.clock.set(time),
            Topology::Sentinel { .. } | Topology::Cluster | Topology::Managed(_) => self.clock.raise(time),
        }
    }

    async fn read_clocks(&self, connection: &mut ClusterConnection) -> RedisResult<()> {
        // One silent node must not block the use of the others.
        let highest = timeout(self.limits.connect / 4, highest_time(connection)).await;
        match highest {
            Ok(Ok(time)) => self.clock.raise(time),
            _ if self.clock.is_read() => {}
            _ => self.clock.raise(read_time(cluster::ask_any(connection, redis::cmd("TIME")).await?)?),
        }
        Ok(())
    }

    fn maker(&self) -> RedisResult<Maker> {
        Ok(match (&self.address.topology, self.address.nodes.first()) {
            (Topology::Single, Some(node)) => Maker::Single(self.address.client(node)?),
            (Topology::Sentinel { master, sentinel_user, sentinel_password }, _) => {
                Maker::Sentinel(self.address.sentinels(master, sentinel_user.as_ref(), sentinel_password.as_ref())?)
            }
            (Topology::Managed(manager), _) => Maker::Managed(manager.clone()),
            _ => Maker::Cluster(self.address.cluster(self.limits.connect, self.limits.response)?),
        })
    }

    /// Drops a connection if it is still the current one. The next call makes a new connection.
    fn retire(&self, number: u64, why: &str) {
        let mut current = self.current.lock();
        if current.number == number && current.connection.take().is_some() {
            debug!(server = %self.address.name(), why, "a connection to Redis is dropped");
        }
    }

    /// Sends commands together and returns each one's answer. A server error belongs to one command only.
    ///
    /// `commands` is called when a connection exists, with the server's time; from then on its commands count as sent.
    /// Without a connection, nothing was sent.
    ///
    /// If the call is dropped, its effect is unknown. If its connection was silent all that time, the connection is
    /// dropped too.
    pub(super) async fn pipeline(
        &self,
        commands: impl FnOnce(Now) -> Vec<Cmd>,
    ) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let (number, connection) = self.connection().await?;
        let Connection::Single(mut connection) = connection else {
            return Err(Failure::Refused(StoreError::unavailable("a cluster takes no pipeline over its slots")));
        };
        let mut commands = commands(self.clock.now());
        let reads_clock = self.clock.take_due();
        if reads_clock {
            commands.push(redis::cmd("TIME"));
        }
        let count = commands.len();
        let answers = async move {
            if let [command] = commands.as_slice() {
                return connection.send_packed_command(command).await.map(|value| vec![value]);
            }
            let mut pipeline = Pipeline::with_capacity(count);
            for command in commands {
                pipeline.add_command(command);
            }
            connection.send_packed_commands(&pipeline, 0, count).await
        };
        let mut values = self.answered(number, answers).await?;
        if values.len() != count {
            self.retire(number, "it gave the wrong count of answers");
            return Err(Failure::Broken(format!("{} answers to {count} commands", values.len())));
        }
        if reads_clock && let Some(Ok(time)) = values.pop().map(read_time) {
            self.read_clock(time);
        }
        let answers: Vec<_> = values.into_iter().map(sorted).collect();
        if answers.iter().any(|answer| answer.as_ref().is_err_and(Failure::is_demoted)) {
            self.retire(number, DEMOTED);
        }
        Ok(answers)
    }

    /// Sends one command to the node of its key, and reports to the step's state. As in [`pipeline`](Self::pipeline),
    /// `command` is called when a connection exists.
    pub(super) async fn command<'a>(
        &self,
        command: impl FnOnce(Now) -> (Cmd, &'a mut StepState),
    ) -> Result<Value, Failure> {
        let (number, connection) = self.connection().await?;
        let (command, state) = command(self.clock.now());
        match connection {
            Connection::Single(mut connection) => {
                state.sent();
                let value = self.answered(number, async { connection.send_packed_command(&command).await }).await?;
                sorted(value)
            }
            Connection::Cluster(mut connection) => {
                if self.clock.take_due() {
                    tokio::spawn(refresh(Arc::clone(&self.clock), connection.clone(), self.limits.response));
                }
                self.answered(number, async { Ok(cluster::send(&mut connection, &command, state).await) }).await?
            }
        }
    }

    /// Sends one command that is safe to repeat.
    pub(super) async fn read(&self, command: Cmd) -> Result<Value, Failure> {
        let until = Instant::now() + self.limits.response;
        loop {
            let mut state = StepState::default();
            match self.command(|_| (command.clone(), &mut state)).await {
                Err(Failure::Adrift(_)) if Instant::now() < until => {}
                answer => return answer,
            }
        }
    }

    /// Asks every server, including a cluster's replicas, and returns each one's answer or error by its name. A silent
    /// server does not hold up the others.
    pub(super) async fn each_node(&self, command: Cmd) -> Result<Vec<(String, Result<Value, String>)>, Failure> {
        let (number, connection) = self.connection().await?;
        let nodes = match connection {
            Connection::Single(_) => Vec::new(),
            Connection::Cluster(mut connection) => {
                self.answered(number, async { cluster::nodes(&mut connection).await }).await?
            }
        };
        // Some clusters don't name their hosts; only the driver knows them.
        if nodes.is_empty() {
            let answers = self.everywhere(command).await?;
            return Ok(answers.into_iter().map(|(server, answer)| (server, Ok(answer))).collect());
        }
        let limit = self.limits.response / 2;
        let answers = nodes.into_iter().map(|node| {
            let command = command.clone();
            async move {
                // On a separate connection, because the driver answers nobody while it tries to reach a silent node.
                let asked = async {
                    let mut connection = open(&self.address.node(&node)?).await?;
                    connection.send_packed_command(&command).await
                };
                let answer = match timeout(limit, asked).await {
                    Ok(answer) => answer.or_else(told).map_err(|error| error.to_string()),
                    Err(_) => Err(format!("no answer within {limit:?}")),
                };
                (node, answer)
            }
        });
        Ok(join_all(answers).await)
    }

    /// Asks every server that holds records, and returns each one's answer by its name. A refusal counts as an answer.
    pub(super) async fn everywhere(&self, command: Cmd) -> Result<Vec<(String, Value)>, Failure> {
        let (number, connection) = self.connection().await?;
        let answers = async {
            match connection {
                Connection::Single(mut connection) => {
                    let answer = connection.send_packed_command(&command).await.or_else(told)?;
                    Ok(vec![(self.address.name(), answer)])
                }
                Connection::Cluster(mut connection) => cluster::ask_primaries(&mut connection, command).await,
            }
        };
        self.answered(number, answers).await
    }

    /// Asks one of the servers that [`everywhere`](Self::everywhere) names.
    pub(super) async fn on_server(&self, name: &str, command: Cmd) -> Result<Value, Failure> {
        let (number, connection) = self.connection().await?;
        let answer = async {
            match connection {
                Connection::Single(mut connection) => connection.send_packed_command(&command).await,
                Connection::Cluster(mut connection) => cluster::ask_node(&mut connection, name, command).await,
            }
        };
        self.answered(number, answer).await.and_then(sorted)
    }

    /// Waits for an answer, up to the time limit. Drops a connection that failed or was silent for that long.
    async fn answered<T>(&self, number: u64, answer: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
        let since = Instant::now();
        let mut waiting = Waiting { link: self, number, since: Some(since) };
        let answered = timeout(self.limits.response, answer).await;
        waiting.since = None;
        match answered {
            Ok(Ok(value)) => {
                self.current.lock().heard = Instant::now();
                Ok(value)
            }
            // A single command returns the server's error as `Err`.
            Ok(Err(error)) => {
                let failure = Failure::of_sent(error);
                match &failure {
                    Failure::Broken(why) | Failure::Silent(why) => self.retire(number, why),
                    failure if failure.is_demoted() => self.retire(number, DEMOTED),
                    Failure::NoScript | Failure::Adrift(_) | Failure::Refused(_) | Failure::Unfit(_) => {}
                }
                Err(failure)
            }
            Err(_) => {
                let why = format!("no answer within {:?}", self.limits.response);
                if !self.others_answer(since) {
                    self.retire(number, &why);
                }
                Err(Failure::Silent(why))
            }
        }
    }

    /// Returns whether only one node of a cluster is silent, so that the connection to the others is worth keeping for
    /// now.
    fn others_answer(&self, since: Instant) -> bool {
        let current = self.current.lock();
        self.is_cluster() && current.heard > since && current.made.elapsed() < KEPT_WHILE_OTHERS_ANSWER
    }

    /// Opens a connection that receives announcements. Each server gets the full connection time, so a silent server
    /// does not use up the time of the others.
    pub(super) async fn listen(&self, channel: &str) -> RedisResult<PubSub> {
        let mut refused = None;
        for client in timely(self.limits.connect, self.listened_to()).await? {
            let listening = async {
                let mut heard = client.get_async_pubsub().await?;
                heard.subscribe(channel).await?;
                Ok(heard)
            };
            match timely(self.limits.connect, listening).await {
                Ok(heard) => return Ok(heard),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| std::io::Error::other("no address").into()))
    }

    /// Returns the servers, each of which passes on all announcements.
    async fn listened_to(&self) -> RedisResult<Vec<Client>> {
        match &self.address.topology {
            Topology::Sentinel { master, sentinel_user, sentinel_password } => {
                let (user, password) = (sentinel_user.as_ref(), sentinel_password.as_ref());
                Ok(vec![self.address.sentinels(master, user, password)?.async_get_client().await?])
            }
            _ => self.address.nodes.iter().map(|node| self.address.client(node)).collect(),
        }
    }
}

/// Ends work that exceeds its time limit.
async fn timely<T>(limit: Duration, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

/// A call in progress. If it is dropped after the connection was silent for long, it drops the connection too.
struct Waiting<'a> {
    link: &'a Link,
    number: u64,
    since: Option<Instant>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(since) = self.since else { return };
        let heard = self.link.current.lock().heard;
        if since.elapsed() >= SUSPICIOUS && heard < since {
            self.link.retire(self.number, "it was silent until a call was given up");
        }
    }
}

async fn open(client: &Client) -> RedisResult<Single> {
    client.get_multiplexed_async_connection_with_config(&without_timeouts()).await.map(Single::Own)
}

/// Returns the highest clock of a cluster's primaries.
async fn highest_time(connection: &mut ClusterConnection) -> RedisResult<Duration> {
    let answers = cluster::ask_primaries(connection, redis::cmd("TIME")).await?;
    let times = answers.into_iter().map(|(_, answer)| read_time(answer)).collect::<RedisResult<Vec<_>>>()?;
    times.into_iter().max().ok_or_else(|| std::io::Error::other("the cluster has no primary").into())
}

/// Reads the clocks of a cluster again. If that fails, the next refresh reads them.
async fn refresh(clock: Arc<Clock>, mut connection: ClusterConnection, limit: Duration) {
    if let Ok(Ok(time)) = timeout(limit, highest_time(&mut connection)).await {
        clock.raise(time);
    }
}

fn told(error: RedisError) -> RedisResult<Value> {
    ServerError::try_from(error).map(Value::ServerError)
}

/// An error in place of an answer belongs to that command only.
fn sorted(value: Value) -> Result<Value, Failure> {
    match value {
        Value::ServerError(error) => Err(Failure::of_server(&error)),
        value => Ok(value),
    }
}

/// Returns the backoff before the next attempt. Half of it is jitter, so clients that lost the same server don't
/// reconnect in step.
fn pause_after(failures: u32) -> Duration {
    let pause = Duration::from_millis(25 << failures.min(6)).min(LONGEST_PAUSE);
    pause.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(url: &str) -> Link {
        let limits = Limits { connect: Duration::from_secs(1), response: Duration::from_secs(1) };
        Link::new(Address::parse(url).unwrap(), limits, Accepts::default())
    }

    /// The clock of a new master may be behind.
    #[test]
    fn e25_a_new_masters_clock_does_not_set_the_tokens_back() {
        const DAY: Duration = Duration::from_secs(86_400);
        for (url, goes_back) in [
            ("redis://localhost/0", true),
            ("redis+sentinel://localhost:1/main", false),
            ("redis+cluster://localhost:1", false),
        ] {
            let link = link(url);
            link.read_clock(2 * DAY);
            let first = link.clock.now();
            link.read_clock(DAY);
            let second = link.clock.now();
            assert_eq!(second.micros < first.micros, goes_back, "{url}");
            // The current clock measures how long a key must outlive its token.
            assert!(second.last_millis < first.last_millis, "{url}");
        }
    }
}
