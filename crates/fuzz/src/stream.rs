//! The bytes of a connection: each is a function of (seed, connection, direction, offset), and the function can be
//! turned round: of wrong bytes it says which connection, direction and offset they belong to.

/// A deterministic generator for plans: splitmix64. The same on every version of every library.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator of its own for each (seed, number).
    pub fn new(seed: u64, number: u64) -> Self {
        Self(mix(seed ^ mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// splitmix64's finisher: a bijection.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Its inverse.
fn unmix(mut x: u64) -> u64 {
    x = x ^ (x >> 31) ^ (x >> 62);
    x = x.wrapping_mul(0x3196_42b2_d24d_8ec3);
    x = x ^ (x >> 27) ^ (x >> 54);
    x = x.wrapping_mul(0x96de_1b17_3f11_9089);
    x ^ (x >> 30) ^ (x >> 60)
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// From the server.
    Down,
}

/// One direction of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    seed: u64,
    base: u64,
}

impl Stream {
    /// The bytes that go one way.
    pub fn new(seed: u64, connection: u32, direction: Direction) -> Self {
        Self { seed: mix(seed), base: u64::from(connection) << 32 | u64::from(direction == Direction::Down) << 31 }
    }

    fn word(&self, index: u64) -> [u8; 8] {
        mix((self.base | (index & 0x7fff_ffff)) ^ self.seed).to_le_bytes()
    }

    /// The bytes from `offset` on.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let (mut at, mut offset) = (0, offset);
        while at < buffer.len() {
            let word = self.word(offset / 8);
            let from = (offset % 8) as usize;
            let size = (8 - from).min(buffer.len() - at);
            buffer[at..at + size].copy_from_slice(&word[from..from + size]);
            at += size;
            offset += size as u64;
        }
    }

    /// Whether `bytes` stand at `offset`; otherwise what they are.
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let mut at = 0;
        let mut expected = [0u8; 4096];
        while at < bytes.len() {
            let size = expected.len().min(bytes.len() - at);
            self.fill(offset + at as u64, &mut expected[..size]);
            if expected[..size] != bytes[at..at + size] {
                let wrong = at + expected[..size].iter().zip(&bytes[at..]).take_while(|(a, b)| a == b).count();
                return Err(self.explain(offset + wrong as u64, &bytes[wrong..]));
            }
            at += size;
        }
        Ok(())
    }

    fn explain(&self, offset: u64, wrong: &[u8]) -> String {
        let what = format!("at offset {offset} stand {} bytes that do not belong there", wrong.len());
        match self.origin(wrong) {
            Some((connection, direction, from)) if self.base == Self::new(0, connection, direction).base => format!(
                "{what}: they are this stream's own of offset {from}: {}",
                match from.checked_sub(offset) {
                    Some(gap) => format!("{gap} bytes are lost, or come later"),
                    None => format!("{} bytes back: duplicated, or late", offset - from),
                }
            ),
            Some((connection, direction, from)) => {
                format!("{what}: they are ANOTHER CONNECTION's: connection {connection}, {direction:?}, offset {from}")
            }
            None => format!("{what}, of no stream of this run: {:02x?}", &wrong[..wrong.len().min(24)]),
        }
    }

    /// Where bytes come from: two whole words that follow one another are believed.
    fn origin(&self, bytes: &[u8]) -> Option<(u32, Direction, u64)> {
        (0..8).find_map(|skip| {
            let first = u64::from_le_bytes(bytes.get(skip..skip + 8)?.try_into().ok()?);
            let second = u64::from_le_bytes(bytes.get(skip + 8..skip + 16)?.try_into().ok()?);
            let (a, b) = (unmix(first) ^ self.seed, unmix(second) ^ self.seed);
            let index = a & 0x7fff_ffff;
            let direction = if a & 1 << 31 == 0 { Direction::Up } else { Direction::Down };
            (b == a.wrapping_add(1)).then(|| ((a >> 32) as u32, direction, (index * 8).wrapping_sub(skip as u64)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_can_be_turned_round() {
        let mut random = Random::new(1, 2);
        for _ in 0..1000 {
            let x = random.next();
            assert_eq!(unmix(mix(x)), x);
        }
    }

    #[test]
    fn a_stream_is_the_same_in_any_pieces() {
        let stream = Stream::new(7, 3, Direction::Down);
        let mut whole = [0u8; 999];
        stream.fill(5, &mut whole);
        for (from, to) in [(0, 1), (1, 9), (9, 500), (500, 999)] {
            assert_eq!(stream.check(5 + from as u64, &whole[from..to]), Ok(()));
        }
    }

    #[test]
    fn wrong_bytes_are_named() {
        let (one, other) = (Stream::new(7, 3, Direction::Up), Stream::new(7, 4, Direction::Down));
        let mut bytes = [0u8; 64];
        one.fill(100, &mut bytes);
        assert!(one.check(90, &bytes).unwrap_err().contains("10 bytes are lost"));
        assert!(one.check(110, &bytes).unwrap_err().contains("10 bytes back"));
        other.fill(33, &mut bytes);
        let said = one.check(0, &bytes).unwrap_err();
        assert!(said.contains("ANOTHER CONNECTION's: connection 4, Down, offset 33"), "{said}");
        assert!(one.check(0, &[0; 64]).unwrap_err().contains("no stream of this run"));
    }
}
