//! Steps that read before they write, as scripts. Each script is one atomic step of the server.
//!
//! A step of a claim's owner reads only the head of the value (the claim, the state's letter and the mark). It returns
//! the head, so that the client can verify it, with an `n` before it if the step did not apply. If a caller waits, the
//! script announces the end of the claim. It uses `pcall`, so the step does not fail where publishing is forbidden.
//!
//! # Why a withdrawn claim never lands
//!
//! A claim reaches the server as one of two commands. Both are conditional, and a withdrawal makes their condition
//! false for longer than a network or a paused server delays a command ([`WITHDRAWAL_KEPT`]):
//!
//! - `SET … NX` lands only if there is **no key**. After a withdrawal there is a key for that long: `WITHDRAW` leaves a
//!   tombstone, marks the claim that it finds, or lengthens the life of an outcome that would expire sooner. The mark
//!   (a [`Barrier`](super::value::Barrier)) moves to the tombstone that ends the claim, and to the claim that replaces
//!   the tombstone. `COMPLETE` and `RESOLVE` keep the outcome of a marked claim for at least as long. A mark does not
//!   say when it ends, so each end of a marked claim restarts the time. That is longer than needed, but simple.
//! - `TAKE_OVER` lands only if the key still holds **exactly the value that the client read**. `WITHDRAW` changes that
//!   value, because it increments the mark's count. No step restores an earlier value: an owner claims a key once, all
//!   steps of a claim keep its mark, and the steps that end the claim end it for good.
//!
//! So no client has to prove that it knows of a withdrawal: a client that finds a tombstone takes it over at once with
//! `TAKE_OVER`. Here, a claim can't arrive late *as a message*. A message that has not been sent belongs to its
//! [`Step`](super::step::Step), which ends when its reply is used or dropped, and the engine withdraws a claim only
//! after that. As a second defense, a client that finds a mark with its own owner answers
//! [`Withdrawn`](oncekey::backend::Acquired::Withdrawn), as the other stores do.
//!
//! The same holds for a claim that is sent twice because its connection broke. The first copy may arrive after the
//! second copy's claim has ended, so the second copy marks its claim from the start. If the second copy finds another
//! owner's claim, the client withdraws its own claim before it answers.
//!
//! # Why a fencing token never goes back
//!
//! A claim that finds a value takes a higher token than that value's, and `TAKE_OVER` compares the value. A claim that
//! finds nothing takes the server's time, or slightly less: see [`clock`](super::clock). Release, resolve and remove
//! leave a tombstone with the token. A token can be ahead of the clock if the clock was set back or another server took
//! over. So every step that leaves an outcome or a tombstone keeps it until the clock has passed its token (`kept`).
//!
//! # Why a lack of memory never refuses a step that ends a claim
//!
//! Above `maxmemory`, Redis refuses commands that may need more memory. If Redis refused a completion, the outcome
//! would be lost and the operation would run again. So the steps that renew, end or withdraw a claim carry the flag
//! `allow-oom` ([`Step::of_a_claim`]). They write little, and never more than one value. Redis does refuse a step that
//! starts work, and then nothing runs.
//!
//! # Records with steps
//!
//! The letter in a record's value says whether the record has steps. Most have none, so a script gets only the record's
//! key. A script that must touch the steps but did not get their key does nothing: it answers an `s` before the head.
//! The client then sends both keys, or hands the message to the scripts of [families](super::family_script).

use std::sync::LazyLock;

use oncekey::OnAbandoned;
use oncekey::record::{Steps, WITHDRAWAL_KEPT};
use redis::{Cmd, Script};

use super::value::{LONGEST, millis, window};

/// Defines `head`, `state`, `has_steps`, `is_owner`, `barrier`, `announce`, `kept` and the windows, which most scripts
/// need. The first argument is the owner, encoded by [`owned_by`](super::value::owned_by). `at` is the length of the
/// claim: a value of version 1 has no fencing token. No step touches a value of an unknown version. `kept` lengthens a
/// time to live until the clock has passed the token. It has a limit, because a damaged token must not make the command
/// fail.
const PRELUDE: &str = "
local head = redis.call('GETRANGE', KEYS[1], '0', '102')
local at, is_owner = 69, string.sub(head, 1, 17) == ARGV[1]
if string.byte(head) == 1 then
    at, is_owner = 61, string.sub(head, 2, 17) == string.sub(ARGV[1], 2)
end
local letter = string.sub(head, at + 1, at + 1)
local state = string.lower(letter)
local has_steps = letter ~= state
if string.byte(head) ~= 1 and string.byte(head) ~= 2 or letter == 'W' or letter == 'f' then
    state, has_steps = '', false
end
local windows = { r = #RERUN#, h = #HOLD#, m = #RERUN# }
local mark, barrier = string.sub(head, at + 6, at + 6), ''
if state ~= 'c' and (mark == '#' or mark == '$') then barrier = '#' .. string.sub(head, at + 7, at + 34) end
local is_watched = windows[state] and (mark == '!' or mark == '$')
local function announce(channel)
    if is_watched then redis.pcall('PUBLISH', channel, KEYS[1]) end
end
local function kept(ttl, now)
    ttl = tonumber(ttl)
    if at == 69 and #head >= at then
        local passed = math.floor(struct.unpack('>I8', head, 58) / 1000) + 1 - now
        ttl = math.max(ttl, math.min(passed, #LONGEST#))
    end
    return string.format('%.0f', ttl)
end
";

/// Defines what a script needs that also gets the key of the steps: `family` (nil if it is damaged), `window` (how much
/// longer than its lease a claim with steps lives), `marked` (changes a state to one with steps), `sum`, `write`
/// (writes one step and the family), and `follow`, which gives the steps the life of their record.
/// [`field`](super::field) describes the layout.
const FAMILY: &str = "
local function sum(life, name, body)
    return string.sub(redis.sha1hex(KEYS[1] .. '\\0' .. life .. name .. '\\0' .. body), 1, 16)
end
local family
if has_steps and KEYS[2] then
    local bytes = redis.call('HGET', KEYS[2], '\\0')
    if bytes and #bytes == 39 and string.byte(bytes) == 1 then
        local life = string.sub(bytes, 2, 9)
        if sum(life, '', string.sub(bytes, 1, 23)) == string.sub(bytes, 24) then
            family = { bytes = bytes, life = life, retention = struct.unpack('>I8', bytes, 10),
                open = struct.unpack('>I2', bytes, 18), changes = struct.unpack('>I4', bytes, 20) }
        end
    end
end
local function window()
    if not has_steps then return windows[state] end
    if state == 'h' or family.open > 0 then return #LONGEST# end
    return math.max(#RERUN#, math.min(family.retention, #LONGEST#))
end
local function marked(part)
    local a, b, c, d = string.byte(part, 2, 5)
    return string.upper(string.sub(part, 1, 1)) .. string.char(255 - a, 255 - b, 255 - c, 255 - d) .. string.sub(part, 6)
end
local function write(name, field)
    local body = '\\1' .. family.life
        .. struct.pack('>I8I2I4', family.retention, family.open, (family.changes + 1) % 4294967296)
    redis.call('HSET', KEYS[2], '\\0', body .. sum(family.life, '', body), name, field)
end
local function follow()
    local ttl = redis.call('PTTL', KEYS[1])
    if ttl == -1 then
        redis.call('PERSIST', KEYS[2])
    else
        redis.call('PEXPIRE', KEYS[2], string.format('%.0f', ttl + 1000))
    end
end
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- All that a decision needs.
local function seen(word, fields)
    return { word, redis.call('GET', KEYS[1]), redis.call('PEXPIRETIME', KEYS[1]), now(),
        has_steps and redis.call('HLEN', KEYS[2]) - 1 or 0, fields }
end
";

/// The shebang must be the very first bytes. It also makes Redis strict: the script may use only its declared keys, and
/// all of these scripts do.
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";

pub(super) struct Step {
    script: Script,
    text: String,
}

impl Step {
    /// Creates a step that renews, ends or withdraws a claim, or settles it afterwards. A server that is out of memory
    /// still accepts it.
    pub(super) fn of_a_claim(text: &str) -> Self {
        Self::new(ALLOW_OOM, text)
    }

    /// Creates a step that begins a claim, or only reads.
    pub(super) fn other(text: &str) -> Self {
        Self::new("", text)
    }

    fn new(first_line: &str, text: &str) -> Self {
        let text = format!("{first_line}{text}")
            .replace("#PRELUDE#", PRELUDE)
            .replace("#FAMILY#", FAMILY)
            .replace("#MAX#", &Steps::MAX.to_string())
            .replace("#LONGEST#", &millis(LONGEST).to_string())
            .replace("#RERUN#", &millis(window(OnAbandoned::Rerun)).to_string())
            .replace("#HOLD#", &millis(window(OnAbandoned::Hold)).to_string())
            .replace("#KEPT#", &millis(WITHDRAWAL_KEPT).to_string());
        Self { script: Script::new(&text), text }
    }

    /// Returns a call for one key; the caller adds the arguments. The server knows the script by its digest until it
    /// restarts. `whole` sends the text, which the server then keeps.
    pub(super) fn call(&self, key: &[u8], whole: bool) -> Cmd {
        self.call_for(&[key], whole)
    }

    /// Returns a call for a record and its steps.
    pub(super) fn call_for(&self, keys: &[&[u8]], whole: bool) -> Cmd {
        let mut command = Cmd::with_capacity(8, 256);
        if whole {
            command.arg("EVAL").arg(&self.text);
        } else {
            command.arg("EVALSHA").arg(self.script.get_hash());
        }
        command.arg(keys.len()).arg(keys);
        command
    }
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $kind:ident($text:expr);)*) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Step> = LazyLock::new(|| Step::$kind($text));)*
    };
}
pub(super) use steps;

steps! {
    /// Arguments: owner, state, time to live, channel, the time; the second key is that of the steps, if there are any.
    /// Half of all steps are this one, and the prelude's values for other scripts would add a good part of its cost on
    /// the server.
    COMPLETE = of_a_claim("
        local head = redis.call('GETRANGE', KEYS[1], '0', '74')
        local at = 69
        if string.sub(head, 1, 17) ~= ARGV[1] then
            if string.byte(head) ~= 1 or string.sub(head, 2, 17) ~= string.sub(ARGV[1], 2) then return 'n' .. head end
            at = 61
        end
        local state, part, steps = string.sub(head, at + 1, at + 1), ARGV[2], nil
        if state == 'c' or state == 'C' then return head end
        local is_claim = state == 'r' or state == 'h' or state == 'm'
        if not is_claim and state ~= 'i' then
            is_claim = state == 'R' or state == 'H' or state == 'M'
            if not is_claim and state ~= 'I' then return 'n' .. head end
            if not KEYS[2] then return 's' .. head end
            local a, b, c, d = string.byte(part, 2, 5)
            part = 'C' .. string.char(255 - a, 255 - b, 255 - c, 255 - d) .. string.sub(part, 6)
            steps = KEYS[2]
        end
        local mark, ttl = string.sub(head, at + 6, at + 6), ARGV[3]
        if (mark == '#' or mark == '$') and tonumber(ttl) < #KEPT# then ttl = '#KEPT#' end
        if at == 69 then
            local passed = math.floor(struct.unpack('>I8', head, 58) / 1000) + 1 - ARGV[5]
            if passed > tonumber(ttl) then ttl = string.format('%.0f', math.min(passed, #LONGEST#)) end
        end
        redis.call('SET', KEYS[1], string.sub(head, 1, at) .. part, 'PX', ttl)
        if steps then redis.call('PEXPIRE', steps, string.format('%.0f', ttl + 1000)) end
        if is_claim and (mark == '!' or mark == '$') then redis.pcall('PUBLISH', ARGV[4], KEYS[1]) end
        return head");

    /// Arguments: owner, the lease, and the state to set if the claim has become indeterminate. A claim's time to live
    /// encodes its lease, so it can't be lengthened to outlive the token.
    RENEW = of_a_claim("#PRELUDE#
        if is_owner and has_steps and (windows[state] or state == 'i') then return 's' .. head end
        if is_owner and windows[state] then
            redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[2] + windows[state]))
        elseif is_owner and state == 'i' then
            redis.call('SET', KEYS[1], string.sub(head, 1, at) .. ARGV[3] .. barrier, 'PX',
                string.format('%.0f', ARGV[2] + windows.h))
        else
            return 'n' .. head
        end
        return head");

    /// Arguments: owner, channel, the state of a tombstone, the time. A key is never deleted, because that would lose
    /// its token and any barrier.
    RELEASE = of_a_claim("#PRELUDE#
        if is_owner and has_steps then return 's' .. head end
        if is_owner and (windows[state] or state == 'i') then
            redis.call('SET', KEYS[1], string.sub(head, 1, at) .. ARGV[3] .. barrier, 'PX', kept('#KEPT#', ARGV[4]))
            announce(ARGV[2])
            return head
        end
        return 'n' .. head");

    /// Arguments: owner, channel, a tombstone for an absent key, the state of a tombstone for the owner's own claim, a
    /// barrier's names, and the time. Keeps or creates a key, with a value that no takeover has read.
    WITHDRAW = of_a_claim("#PRELUDE#
        if has_steps then return 's' .. head end
        local count = (tonumber(string.sub(barrier, 22, 25)) or 0) + 1
        local names = ARGV[5] .. string.format('%04d%04d', count % 10000, 9999 - count % 10000)
        if head == '' then
            redis.call('SET', KEYS[1], ARGV[3], 'PX', '#KEPT#')
            return ARGV[3]
        elseif is_owner and (windows[state] or state == 'i') then
            redis.call('SET', KEYS[1], string.sub(head, 1, at) .. ARGV[4] .. '#' .. names, 'PX',
                kept('#KEPT#', ARGV[6]))
            announce(ARGV[2])
        elseif windows[state] or state == 'i' then
            redis.call('SET', KEYS[1], string.sub(head, 1, at + 5) .. (is_watched and '$' or '#') .. names, 'KEEPTTL')
            -- A claim that lapsed long ago has little of its life left, and the barrier would end with it.
            local ttl = redis.call('PTTL', KEYS[1])
            if ttl >= 0 and ttl < #KEPT# then redis.call('PEXPIRE', KEYS[1], '#KEPT#') end
        elseif state == 'w' then
            redis.call('SET', KEYS[1], string.sub(head, 1, at + 5) .. '#' .. names, 'PX', kept('#KEPT#', ARGV[6]))
        elseif state == 'c' then
            local ttl = redis.call('PTTL', KEYS[1])
            if ttl >= 0 and ttl < #KEPT# then redis.call('PEXPIRE', KEYS[1], '#KEPT#') end
        else
            return 'n' .. head
        end
        return head");

    /// Arguments: owner, state, channel.
    HOLD = of_a_claim("#PRELUDE#
        if is_owner and has_steps and windows[state] then return 's' .. head end
        if is_owner and windows[state] then
            redis.call('SET', KEYS[1], string.sub(head, 1, at) .. ARGV[2] .. barrier)
            announce(ARGV[3])
        elseif not is_owner or state ~= 'i' then
            return 'n' .. head
        end
        return head");

    /// Continues after `SET NX` found a claim or a tombstone, if the value is still the same. Arguments: owner, the
    /// value that was read, the value to replace it, its time to live, the value for a claim that must be held,
    /// channel.
    TAKE_OVER = other("#PRELUDE#
        local found = redis.call('GET', KEYS[1])
        if found ~= ARGV[2] then return { 'changed', found } end
        if not is_owner and windows[state] then
            local ttl = redis.call('PTTL', KEYS[1])
            if ttl == -1 then return { 'endless' } end
            if ttl > windows[state] then return { 'held', ttl - windows[state] } end
            if state == 'h' then
                -- It is indeterminate all the same if the server has no memory to write that down.
                redis.pcall('SET', KEYS[1], ARGV[5])
                announce(ARGV[6])
                return { 'indeterminate' }
            end
        end
        redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
        announce(ARGV[6])
        return { 'claimed' }");

    /// Settles the record if its value is still the same and no owner's lease is running. Arguments: owner, the value
    /// that was read, channel, the value to replace it (an outcome or a tombstone), its time to live.
    RESOLVE = of_a_claim("#PRELUDE#
        local found = redis.call('GET', KEYS[1])
        if found ~= ARGV[2] then return { 'changed', found } end
        if state == 'h' and redis.call('PTTL', KEYS[1]) > windows.h then return { 'held' } end
        redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
        announce(ARGV[3])
        return { 'resolved' }");

    /// Reads the value, its time to live and the server's clock, all at the same time.
    READ = other("return { redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('TIME') }");

    /// Replaces the value with a tombstone, if it is still the value that was read. Arguments: an empty string, the
    /// value that was read, channel, the tombstone, its time to live. The second key is that of the steps, if there may
    /// be any.
    REMOVE = of_a_claim("#PRELUDE#
        local found = redis.call('GET', KEYS[1])
        if found ~= ARGV[2] then return { 'changed', found } end
        redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
        if KEYS[2] then redis.call('UNLINK', KEYS[2]) end
        announce(ARGV[3])
        return { 'removed' }");

    /// Requests an announcement of the claim's end. Answers the remaining lease; 0 if no claim is in progress, and -1
    /// if the script needs the key of the record's steps. A server that is out of memory refuses the mark: the waiting
    /// caller then looks again after a second.
    WATCH = other("#PRELUDE##FAMILY#
        if not windows[state] then return 0 end
        if has_steps and not KEYS[2] then return -1 end
        if has_steps and not family then return 0 end
        local left = redis.call('PTTL', KEYS[1]) - window()
        if left <= 0 then return 0 end
        if mark == '' then
            redis.pcall('APPEND', KEYS[1], '!')
        elseif mark == '#' then
            redis.pcall('SETRANGE', KEYS[1], at + 5, '$')
        end
        return left");
}
