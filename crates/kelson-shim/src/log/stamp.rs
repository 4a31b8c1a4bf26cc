//! The time stamp of a log line: RFC 3339 in UTC with nanoseconds, always 30 characters.
//!
//! Formatting is by hand, and the part down to the second is kept: a busy log has thousands of
//! blocks a second.

/// The number of characters of a stamp.
pub(super) const STAMP_LEN: usize = 30;

/// A formatted moment.
#[derive(Debug)]
pub(super) struct Stamp {
    second: Option<i64>,
    text: [u8; STAMP_LEN],
}

impl Stamp {
    pub(super) const fn new() -> Self {
        Self {
            second: None,
            text: *b"1970-01-01T00:00:00.000000000Z",
        }
    }

    /// The text for a moment, in seconds since 1970 and nanoseconds. Years beyond 9999 show their
    /// last four digits.
    pub(super) fn at(&mut self, second: i64, nanos: u32) -> &[u8; STAMP_LEN] {
        if self.second != Some(second) {
            self.second = Some(second);
            self.set_second(second);
        }
        digits(&mut self.text[20..29], nanos);
        &self.text
    }

    fn set_second(&mut self, second: i64) {
        let (year, month, day) = civil(second.div_euclid(86_400));
        let of_day = second.rem_euclid(86_400) as u32;
        digits(&mut self.text[0..4], year.rem_euclid(10_000) as u32);
        digits(&mut self.text[5..7], month);
        digits(&mut self.text[8..10], day);
        digits(&mut self.text[11..13], of_day / 3600);
        digits(&mut self.text[14..16], of_day / 60 % 60);
        digits(&mut self.text[17..19], of_day % 60);
    }
}

/// Fills `to` with the decimal digits of a number, zeros in front.
fn digits(to: &mut [u8], mut number: u32) {
    for digit in to.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are taken to begin in March, so that the leap day is the last day of a year; 400 years
/// have 146,097 days.
fn civil(day: i64) -> (i64, u32, u32) {
    const DAYS_400_YEARS: i64 = 146_097;
    // 1970-01-01 is day 719,468 after 0000-03-01.
    let day = day + 719_468;
    let (era, of_era) = (
        day.div_euclid(DAYS_400_YEARS),
        day.rem_euclid(DAYS_400_YEARS),
    );
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = (of_era - (365 * year + year / 4 - year / 100)) as u32;
    // Five months from March on have 153 days.
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(second: i64, nanos: u32) -> String {
        String::from_utf8(Stamp::new().at(second, nanos).to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            text(951_782_399, 999_999_999),
            "2000-02-28T23:59:59.999999999Z"
        );
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_000_000_000, 5), "2001-09-09T01:46:40.000000005Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(text(-1, 0), "1969-12-31T23:59:59.000000000Z");
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let leap = |y: i64| y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..292_194 {
            assert_eq!(civil(number), (year, month, day), "day {number}");
            let length = match month {
                4 | 6 | 9 | 11 => 30,
                2 => 28 + u32::from(leap(year)),
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn the_kept_second_is_renewed() {
        let mut stamp = Stamp::new();
        stamp.at(10, 1);
        assert_eq!(stamp.at(10, 2), b"1970-01-01T00:00:10.000000002Z");
        assert_eq!(stamp.at(9, 3), b"1970-01-01T00:00:09.000000003Z");
    }
}
