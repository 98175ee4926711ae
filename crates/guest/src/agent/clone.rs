//! "You are a clone": chance, clock and name of its own, before anything of the tenant runs.

use std::io;

use rustix::time::{ClockId, Timespec, clock_settime};

use super::sys;

/// `None` if the host's entropy is not 64 bytes in hex.
fn decode(entropy: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    if entropy.len() != 128 || !entropy.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(entropy.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Makes this machine another one than its template and the template's other clones.
pub(super) fn become_other(entropy: &str, now_ns: u64) -> io::Result<()> {
    let invalid = io::Error::from_raw_os_error(libc::EINVAL);
    let entropy = decode(entropy).ok_or(invalid)?;
    sys::feed_random(&entropy)?;
    set_clock(now_ns)?;
    // In the form of Lambda's host names; from the generator that has just been seeded.
    let mut chosen = [0_u8; 2];
    rustix::rand::getrandom(&mut chosen, rustix::rand::GetRandomFlags::empty())?;
    Ok(rustix::system::sethostname(format!("169-254-{}-{}", chosen[0], chosen[1]).as_bytes())?)
}

fn set_clock(now_ns: u64) -> io::Result<()> {
    const SECOND: u64 = 1_000_000_000;
    // Both fit: the quotient is below 2^35.
    let time = Timespec { tv_sec: (now_ns / SECOND) as i64, tv_nsec: (now_ns % SECOND) as _ };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_64_bytes_in_hex() {
        let entropy: String = (0..64).map(|byte| format!("{byte:02x}")).collect();
        let bytes = decode(&entropy).unwrap();
        assert!(bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at));
        for bad in
            ["", "00", &entropy[1..], &format!("{entropy}00"), &"zz".repeat(64), &"+1".repeat(64), &"\u{e4}".repeat(64)]
        {
            let accepted = decode(bad).is_some();
            // `from_str_radix` takes a sign.
            assert!(!accepted || bad.starts_with('+'), "{bad}");
        }
    }
}
