//! Child processes that communicate in lines, and can be killed, paused and resumed.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a loaded machine. A test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Lets other tasks run until the condition holds.
///
/// # Panics
/// If it does not hold within [`PATIENCE`].
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come to pass");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A child process whose standard input and output are lines. It is killed when this value is dropped.
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Its output, for failure messages.
    heard: Vec<String>,
}

impl Process {
    /// Starts a process. It shares the test's standard error.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines, heard: Vec::new() }
    }

    /// Sends a line.
    ///
    /// # Panics
    /// If the process has closed its input.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}")
            .unwrap_or_else(|error| panic!("{line:?} was not taken: {error}"));
    }

    /// Closes the process's input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for a line that begins with `word`, and returns the rest of it. Earlier lines are skipped.
    ///
    /// # Panics
    /// If the line does not arrive within [`PATIENCE`].
    pub fn expect(&mut self, word: &str) -> String {
        self.expect_within(word, PATIENCE).unwrap_or_else(|| panic!("{word:?} was not said, but {:?}", self.heard))
    }

    /// Like [`expect`](Self::expect), within `limit`. Returns `None` if the line did not arrive.
    pub fn expect_within(&mut self, word: &str, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.strip_prefix(word).map(|rest| rest.trim().to_owned());
                    self.heard.push(line);
                    if found.is_some() {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Returns the next line, whatever it is.
    ///
    /// # Panics
    /// If none arrives within [`PATIENCE`].
    pub fn next_line(&mut self) -> String {
        self.expect("")
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} could not be sent: {error}"));
    }

    /// Kills the process with SIGKILL, so it cannot do anything more. Returns once it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Pauses the process with SIGSTOP. All its threads stop, but time passes for its timers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the process with SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks the process to end with SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for the process to end and returns its exit code, or `None` if a signal ended it.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`].
    pub fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the process did not end; it said {:?}", self.heard);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has already ended cannot be killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.child.id()).field("heard", &self.heard).finish_non_exhaustive()
    }
}
