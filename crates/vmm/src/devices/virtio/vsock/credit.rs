//! Credit: how much each end may send before the other has made room. Counters wrap at 2^32, as on the wire.

/// What we send to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outbound {
    alloc: u32,
    sent: u32,
    taken: u32,
}

/// The guest says that it took bytes which were never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditLie;

impl Outbound {
    /// Bytes that the guest has room for. Zero as well when it shrank its buffer below what is on its way.
    pub fn credit(&self) -> u32 {
        self.alloc.saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    /// Heeds `buf_alloc` and `fwd_cnt` of a packet from the guest. A count older than one that was seen is passed over:
    /// two of the guest's threads may overtake each other.
    pub fn heed(&mut self, alloc: u32, taken: u32) -> Result<(), CreditLie> {
        let on_their_way = self.sent.wrapping_sub(self.taken);
        let newly = taken.wrapping_sub(self.taken);
        let stale = newly > u32::MAX / 2;
        if !stale {
            if newly > on_their_way {
                return Err(CreditLie);
            }
            self.taken = taken;
        }
        self.alloc = alloc;
        Ok(())
    }

    /// Counts bytes that were sent; no more than [`Outbound::credit`].
    pub fn send(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.credit());
        self.sent = self.sent.wrapping_add(bytes);
    }
}

/// What we receive from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    alloc: u32,
    received: u32,
    taken: u32,
    told: u32,
}

/// The guest sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl Inbound {
    /// Room for `alloc` bytes.
    pub fn new(alloc: u32) -> Self {
        Self { alloc, received: 0, taken: 0, told: 0 }
    }

    /// Bytes received that the host's socket has not taken.
    pub fn held(&self) -> u32 {
        self.received.wrapping_sub(self.taken)
    }

    /// Counts bytes from the guest.
    pub fn receive(&mut self, bytes: u32) -> Result<(), Overrun> {
        if bytes > self.alloc - self.held() {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts bytes that the host's socket took; more than are held cannot be taken.
    pub fn take(&mut self, bytes: u32) {
        self.taken = self.taken.wrapping_add(bytes.min(self.held()));
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is being sent.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (self.alloc, self.taken)
    }

    /// Whether the guest should hear of new room: it knows of less than half, and there is more.
    pub fn is_due(&self) -> bool {
        let known = self.alloc.saturating_sub(self.received.wrapping_sub(self.told));
        self.told != self.taken && known < self.alloc / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_survives_the_wrap_and_a_shrinking_buffer() {
        let start = u32::MAX - 10;
        let mut out = Outbound { alloc: 100, sent: start, taken: start };
        out.send(60);
        assert_eq!(out.credit(), 40);
        out.heed(100, start.wrapping_add(30)).unwrap();
        assert_eq!(out.credit(), 70);
        out.heed(10, start.wrapping_add(30)).unwrap();
        assert_eq!(out.credit(), 0);
        // An old count changes nothing; one beyond what was sent is a lie.
        out.heed(100, start).unwrap();
        assert_eq!(out.credit(), 70);
        assert_eq!(out.heed(100, start.wrapping_add(61)), Err(CreditLie));
    }

    #[test]
    fn a_guest_beyond_its_credit_is_noticed_and_updates_are_rare() {
        let mut inbound = Inbound::new(100);
        inbound.receive(40).unwrap();
        inbound.take(40);
        assert!(!inbound.is_due());
        inbound.receive(20).unwrap();
        assert!(inbound.is_due());
        assert_eq!(inbound.tell(), (100, 40));
        assert!(!inbound.is_due());
        assert_eq!(inbound.receive(81), Err(Overrun));
        inbound.receive(80).unwrap();
        inbound.take(1000);
        assert_eq!(inbound.held(), 0);
    }
}
