//! The scripts for a record that has steps. Each takes two keys: the record's key, and the key of its steps.
//!
//! The two most frequent scripts decide by themselves: [`BEGIN_STEP`], if the claim holds and the step is new, and
//! [`COMPLETE_STEP`]. The protocol's functions decide everything else, from what [`READ_FAMILY`] returns.
//! [`WRITE_FAMILY`] then writes the decision if the record, its time and its steps are unchanged.
//!
//! # Why a step that begins late never lands
//!
//! `BEGIN_STEP` writes only if there is no step with its name, and `WRITE_FAMILY` only if nothing was written since the
//! read. If the same run fails, the failure either leaves a step behind, or finds that the claim is lost; then the
//! record's value has changed.

use std::sync::LazyLock;

use super::script::{Step, steps};

steps! {
    /// Arguments: owner, the step's name, its fingerprint, its number, the time until which it may run again (or an
    /// empty string, followed by a duration from now), the retention. Answers `begun`, the head and the life;
    /// otherwise, the data for a decision.
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

    /// Arguments: an empty string, the step's name, the life, the run, the outcome. Answers as the scripts of a claim's
    /// owner do, with a `d` before the head if the steps are damaged.
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

    /// Reads the record and its steps. Arguments: owner, and a `1` if the caller does not need the steps of another
    /// owner's live claim. For such a claim it answers `held`, the value and the remaining lease.
    READ_FAMILY = other("#PRELUDE##FAMILY#
        if ARGV[2] == '1' and has_steps and family and windows[state] and not is_owner then
            local left = redis.call('PTTL', KEYS[1]) - window()
            if left > 0 then return { 'held', redis.call('GET', KEYS[1]), left } end
        end
        return seen('found', has_steps and redis.call('HGETALL', KEYS[2]) or {})");

    /// Arguments: owner, the lease, and the state to set if the claim has become indeterminate.
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

    /// Arguments: owner, state, channel.
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

    /// Writes a decision if nothing has changed: see [`WRITE`].
    WRITE_FAMILY = of_a_claim(WRITE);

    /// Does the same for a write that starts work: a server that is out of memory refuses it.
    CLAIM_FAMILY = other(WRITE);
}

/// Arguments: an empty string; the value, its expiry time and the family that were read; the time before which this
/// must happen, or empty; the new value, or empty to keep it; the new expiry time, `-1` for none, or empty to keep it;
/// the channel, or empty if the claim goes on; what to do with the steps (`keep`, `drop`, or `anew` for the first step
/// of a life); and the fields to write.
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
