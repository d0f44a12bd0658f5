//! Why a message or a connection is not on the fast path.

/// One entry of the append-only list in `bpf/reasons.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// Number, as counted by the programs.
    pub number: u32,
    /// Name, as printed and exported.
    pub name: &'static str,
    /// Meaning, for people.
    pub text: &'static str,
}

/// All reasons, by number. Number 0 is `fast`.
pub const REASONS: &[Reason] = include!(concat!(env!("OUT_DIR"), "/reasons.rs"));

/// The name of a reason; a number of a later version is `unknown`.
pub fn reason_name(number: u32) -> &'static str {
    REASONS.iter().find(|r| r.number == number).map_or("unknown", |r| r.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (i, reason) in REASONS.iter().enumerate() {
            assert_eq!(reason.number as usize, i, "{}", reason.name);
            assert_eq!(REASONS.iter().filter(|r| r.name == reason.name).count(), 1);
        }
        assert_eq!(reason_name(0), "fast");
        assert_eq!(reason_name(9999), "unknown");
    }
}
