//! Numbers for people.

/// `1.5 MiB`
pub fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

/// `12.3k`
pub fn count(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G", "T"])
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_right() {
        let all: Vec<String> = [0.0, 1.0, 1023.0, 1024.0, 1536.0, 150.0 * 1024.0, 1e9].into_iter().map(bytes).collect();
        assert_eq!(all, ["0 B", "1 B", "1023 B", "1.0 KiB", "1.5 KiB", "150 KiB", "954 MiB"]);
        let all: Vec<String> = [0.0, 999.0, 999.7, 12_345.0, 5e6].into_iter().map(count).collect();
        assert_eq!(all, ["0", "999", "1.0k", "12.3k", "5.0M"]);
    }
}
