//! The scripts of a record that has steps. Each one is given two keys: the record's, and that of its steps.
//!
//! The two that most steps consist of decide by themselves: [`BEGIN_STEP`], where the claim holds and the step is new, and
//! [`COMPLETE_STEP`]. All else is decided by the protocol's own functions on what [`READ_FAMILY`] shows, and written by
//! [`WRITE_FAMILY`] if the record, its time and its steps are still what they were.
//!
//! # Why a step that begins late never lands
//!
//! `BEGIN_STEP` writes only where there is no step of its name, and `WRITE_FAMILY` only where nothing was written since. A
//! failure of the same run leaves a step behind in any case, or finds that the claim is lost; and then the record's value
//! is another one.

use std::sync::LazyLock;

use super::script::{Step, steps};

steps! {
    /// Owner, the step's name, what is asked of it, its number, until when it may run again (or nothing, and for how long
    /// from now), the retention. `begun`, the head and the life; or else what a decision needs.
    BEGIN_STEP = other("#PRELUDE##FAMILY#
        local name, ttl = ARGV[2], redis.call('PTTL', KEYS[1])
        local field, count = false, 0
        if has_steps then
            field, count = redis.call('HGET', KEYS[2], name), redis.call('HLEN', KEYS[2]) - 1
        else
            family = { life = string.sub(head, 58, 65), retention = tonumber(ARGV[7]), open = 0, changes = 0 }
        end
        local token = string.sub(head, 58, 65)
        if at == 69 and is_owner and windows[state] and family and not field and count < #MAX# and ttl > window() then
            local began, left, reruns = now(), ttl - window(), ARGV[5]
            if reruns == '' then reruns = struct.pack('>I8', began + ARGV[6]) end
            local body = '\\1b' .. struct.pack('>I8', 1) .. token .. ARGV[4] .. struct.pack('>I8', began) .. reruns
                .. struct.pack('>I2', count) .. ARGV[3]
            if reruns ~= '\\127\\255\\255\\255\\255\\255\\255\\255' then family.open = family.open + 1 end
            if not has_steps then
                -- A server without memory refuses this, and nothing was done.
                redis.call('SETRANGE', KEYS[1], at, marked(string.sub(head, at + 1, at + 5)))
                redis.call('UNLINK', KEYS[2])
                has_steps = true
            end
            write(name, body .. sum(family.life, name, body))
            redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left + window()))
            follow()
            return { 'begun', head, family.life }
        end
        local fields = {}
        if has_steps then
            local bytes = redis.call('HGET', KEYS[2], '\\0')
            if bytes then fields = { '\\0', bytes } end
            if field then
                fields[#fields + 1] = name
                fields[#fields + 1] = field
            end
        end
        return seen('found', fields)");

    /// Nothing, the step's name, the life, the run, the outcome. Answers as the scripts of a claim's owner do, with a `d`
    /// before the head where the steps are damaged.
    COMPLETE_STEP = of_a_claim("#PRELUDE##FAMILY#
        if not has_steps then return 'n' .. head end
        if not family then return 'd' .. head end
        local name, field = ARGV[2], redis.call('HGET', KEYS[2], ARGV[2])
        if family.life ~= ARGV[3] or not field then return 'n' .. head end
        local size = string.byte(field, 41) == 1 and 73 or 41
        local body = string.sub(field, 1, size)
        local found = sum(family.life, name, body .. string.sub(field, size + 17))
        if string.byte(field) ~= 1 or found ~= string.sub(field, size + 1, size + 16) then return 'd' .. head end
        if string.sub(body, 11, 22) ~= ARGV[4] then return 'n' .. head end
        local progress = string.sub(body, 2, 2)
        if progress == 'c' then return head end
        if progress ~= 'b' then return 'n' .. head end
        local ttl, left = redis.call('PTTL', KEYS[1]), 0
        -- A claim that lapsed long ago is kept from now on.
        if windows[state] then left = math.max(ttl - window(), 0) end
        if string.sub(body, 31, 38) ~= '\\127\\255\\255\\255\\255\\255\\255\\255' then
            family.open = math.max(family.open - 1, 0)
        end
        body = '\\1c' .. string.sub(body, 3)
        write(name, body .. sum(family.life, name, body .. ARGV[5]) .. ARGV[5])
        if windows[state] and ttl >= 0 then
            redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left + window()))
        elseif state == 'f' and ttl < family.retention then
            redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(family.retention, #LONGEST#)))
        end
        follow()
        return head");

    /// The record and its steps as they are. Owner, and a `1` where the steps of another's live claim are of no use: then
    /// `held`, the value and the lease left.
    READ_FAMILY = other("#PRELUDE##FAMILY#
        if ARGV[2] == '1' and has_steps and family and windows[state] and not is_owner then
            local left = redis.call('PTTL', KEYS[1]) - window()
            if left > 0 then return { 'held', redis.call('GET', KEYS[1]), left } end
        end
        return seen('found', has_steps and redis.call('HGETALL', KEYS[2]) or {})");

    /// Owner, the lease, and the state for a claim that had become indeterminate.
    RENEW_FAMILY = of_a_claim("#PRELUDE##FAMILY#
        if has_steps and not family then return 'd' .. head end
        if is_owner and windows[state] then
            redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[2] + window()))
        elseif is_owner and state == 'i' then
            local part = has_steps and marked(ARGV[3]) or ARGV[3]
            redis.call('SET', KEYS[1], string.sub(head, 1, at) .. part .. barrier, 'PX',
                string.format('%.0f', ARGV[2] + windows.h))
        else
            return 'n' .. head
        end
        if has_steps then follow() end
        return head");

    /// Owner, state, channel.
    HOLD_FAMILY = of_a_claim("#PRELUDE##FAMILY#
        if is_owner and windows[state] then
            local part = has_steps and marked(ARGV[2]) or ARGV[2]
            redis.call('SET', KEYS[1], string.sub(head, 1, at) .. part .. barrier)
            announce(ARGV[3])
            if has_steps then follow() end
        elseif not is_owner or state ~= 'i' then
            return 'n' .. head
        end
        return head");

    /// What was decided, if all is still as it was: see [`WRITE`].
    WRITE_FAMILY = of_a_claim(WRITE);

    /// The same, for what starts work: a server without memory refuses it.
    CLAIM_FAMILY = other(WRITE);
}

/// Nothing; the value, the point in time at which it expires and the family that were met; the point before which this
/// must be done, or nothing; the new value, or nothing to leave it; the new point in time, `-1` for none, or nothing to leave
/// it; the channel, or nothing if the claim goes on; what becomes of the steps (`keep`, `drop`, or `anew` for the first
/// one of a life); and the fields to put.
const WRITE: &str = "#PRELUDE##FAMILY#
    local bytes = has_steps and redis.call('HGET', KEYS[2], '\\0') or ''
    local expiry = string.format('%.0f', redis.call('PEXPIRETIME', KEYS[1]))
    if redis.call('GET', KEYS[1]) ~= ARGV[2] or expiry ~= ARGV[3] or bytes ~= ARGV[4]
        or (ARGV[5] ~= '' and now() >= tonumber(ARGV[5])) then
        return seen('changed', has_steps and redis.call('HGETALL', KEYS[2]) or {})
    end
    if ARGV[6] ~= '' then redis.call('SET', KEYS[1], ARGV[6], 'KEEPTTL') end
    if ARGV[9] ~= 'keep' then redis.call('UNLINK', KEYS[2]) end
    if #ARGV > 9 then redis.call('HSET', KEYS[2], unpack(ARGV, 10)) end
    if ARGV[7] == '-1' then
        redis.call('PERSIST', KEYS[1])
    elseif ARGV[7] ~= '' then
        redis.call('PEXPIREAT', KEYS[1], ARGV[7])
    end
    if ARGV[9] ~= 'drop' then follow() end
    if ARGV[8] ~= '' then announce(ARGV[8]) end
    return { 'written' }";
