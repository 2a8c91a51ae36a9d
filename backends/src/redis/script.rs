//! The steps that look before they write, as scripts: each is one atomic step of the server.
//!
//! A step of a claim's owner looks at the head of the value alone (the claim, the state's letter, and the mark of those
//! who wait), and gives it back, so that the client can check it: behind an `n` where the step was not taken. Where
//! somebody waits, the end of a claim is announced; that must not fail the step where publishing is forbidden, hence
//! `pcall`.

use std::sync::LazyLock;

use oncekey::OnAbandoned;
use redis::{Cmd, Script};

use super::value::{millis, window};

/// `head`, `state`, `is_owner`, `announce` and the windows, which most of them need. The owner comes first of the
/// arguments, as [`owned_by`](super::value::owned_by) writes it.
const PRELUDE: &str = "
local head = redis.call('GETRANGE', KEYS[1], '0', '66')
local state = string.sub(head, 62, 62)
local is_owner = string.sub(head, 1, 17) == ARGV[1]
local windows = { r = #RERUN#, h = #HOLD# }
local function announce(channel)
    if windows[state] and string.sub(head, 67, 67) == '!' then redis.pcall('PUBLISH', channel, KEYS[1]) end
end
";

pub(super) struct Step {
    script: Script,
    text: String,
}

impl Step {
    fn new(text: &str) -> Self {
        let text = text
            .replace("#PRELUDE#", PRELUDE)
            .replace("#RERUN#", &millis(window(OnAbandoned::Rerun)).to_string())
            .replace("#HOLD#", &millis(window(OnAbandoned::Hold)).to_string());
        Self { script: Script::new(&text), text }
    }

    /// A call for one key, to which its arguments are added. The server knows the script by its digest, until it is
    /// restarted; `whole` sends the text, which it then keeps.
    pub(super) fn call(&self, key: &[u8], whole: bool) -> Cmd {
        let mut command = Cmd::with_capacity(8, 256);
        if whole {
            command.arg("EVAL").arg(&self.text);
        } else {
            command.arg("EVALSHA").arg(self.script.get_hash());
        }
        command.arg(1).arg(key);
        command
    }
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:expr;)*) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Step> = LazyLock::new(|| Step::new($text));)*
    };
}

steps! {
    /// Owner, state, time to live, channel. Half of all steps are this one, and what the prelude makes for others is a
    /// good part of what it would cost the server.
    COMPLETE = "
        local head = redis.call('GETRANGE', KEYS[1], '0', '66')
        local state = string.sub(head, 62, 62)
        if string.sub(head, 1, 17) ~= ARGV[1] then return 'n' .. head end
        if state == 'c' then return head end
        local is_claim = state == 'r' or state == 'h'
        if not is_claim and state ~= 'i' then return 'n' .. head end
        redis.call('SET', KEYS[1], string.sub(head, 1, 61) .. ARGV[2], 'PX', ARGV[3])
        if is_claim and string.sub(head, 67, 67) == '!' then redis.pcall('PUBLISH', ARGV[4], KEYS[1]) end
        return head";

    /// Owner, the lease, and the state for a claim that had become indeterminate.
    RENEW = "#PRELUDE#
        if is_owner and windows[state] then
            redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[2] + windows[state]))
        elseif is_owner and state == 'i' then
            redis.call('SET', KEYS[1], string.sub(head, 1, 61) .. ARGV[3], 'PX',
                string.format('%.0f', ARGV[2] + windows.h))
        else
            return 'n' .. head
        end
        return head";

    /// Owner, channel, what stands in the way of a claim that arrives after it was taken back, its time to live.
    RELEASE = "#PRELUDE#
        if head == '' then
            redis.pcall('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
        elseif is_owner and (windows[state] or state == 'i') then
            redis.call('DEL', KEYS[1])
            announce(ARGV[2])
            return head
        end
        return 'n' .. head";

    /// Owner, state, channel.
    HOLD = "#PRELUDE#
        if is_owner and windows[state] then
            redis.call('SET', KEYS[1], string.sub(head, 1, 61) .. ARGV[2])
            announce(ARGV[3])
        elseif not is_owner or state ~= 'i' then
            return 'n' .. head
        end
        return head";

    /// Goes on where `SET NX` met a claim, if that is still the one that was met. Owner, the value met, the value to put
    /// in its place, its time to live, the value for a claim that is to be held, channel.
    TAKE_OVER = "#PRELUDE#
        local found = redis.call('GET', KEYS[1])
        if found ~= ARGV[2] then return { 'changed', found } end
        if not is_owner and windows[state] then
            local ttl = redis.call('PTTL', KEYS[1])
            if ttl == -1 then return { 'endless' } end
            if ttl > windows[state] then return { 'held', ttl - windows[state] } end
            if state == 'h' then
                redis.call('SET', KEYS[1], ARGV[5])
                announce(ARGV[6])
                return { 'indeterminate' }
            end
        end
        redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
        announce(ARGV[6])
        return { 'claimed' }";

    /// Settles what was met, if it is still that and nobody is at work on it. Owner, the value met, channel, and where
    /// there is an outcome the value to put in its place and its time to live.
    RESOLVE = "#PRELUDE#
        local found = redis.call('GET', KEYS[1])
        if found ~= ARGV[2] then return { 'changed', found } end
        if state == 'h' and redis.call('PTTL', KEYS[1]) > windows.h then return { 'held' } end
        if ARGV[4] then
            redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
        else
            redis.call('DEL', KEYS[1])
        end
        announce(ARGV[3])
        return { 'resolved' }";

    /// The value and its time to live, at one time.
    READ = "return { redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]) }";

    /// Nothing, channel.
    REMOVE = "#PRELUDE#
        redis.call('DEL', KEYS[1])
        announce(ARGV[2])
        return (head == '' or state == 'w') and 0 or 1";

    /// Asks that the claim's end be announced. Gives the lease left; 0 if nobody is at work.
    WATCH = "#PRELUDE#
        if not windows[state] then return 0 end
        local left = redis.call('PTTL', KEYS[1]) - windows[state]
        if left <= 0 then return 0 end
        if string.len(head) == 66 then redis.pcall('APPEND', KEYS[1], '!') end
        return left";
}
