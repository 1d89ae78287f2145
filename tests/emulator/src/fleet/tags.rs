//! Tags for rollouts to aim at: each value has its share of the fleet.

use std::fmt;
use std::str::FromStr;

/// One tag, as `ring=canary:1,early:9,broad:90`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag {
    pub name: String,
    /// Values, and of how many devices in a hundred.
    shares: Vec<(String, usize)>,
}

/// A text that is no tag.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a tag with the shares of its values, which are 100 together: ring=canary:1,early:9,broad:90")]
pub(super) struct BadTag;

impl FromStr for Tag {
    type Err = BadTag;

    fn from_str(text: &str) -> Result<Self, BadTag> {
        let (name, shares) = text.split_once('=').ok_or(BadTag)?;
        let share = |text: &str| {
            let (value, percent) = text.split_once(':').ok_or(BadTag)?;
            Ok((value.to_owned(), percent.parse().map_err(|_| BadTag)?))
        };
        let shares = shares.split(',').map(share).collect::<Result<Vec<(String, usize)>, BadTag>>()?;
        let whole: usize = shares.iter().map(|(_, percent)| *percent).sum();
        if name.is_empty() || whole != 100 {
            return Err(BadTag);
        }
        Ok(Self { name: name.to_owned(), shares })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares: Vec<_> =
            self.shares.iter().map(|(value, percent)| format!("{value} {percent} %")).collect();
        write!(f, "{}: {}", self.name, shares.join(", "))
    }
}

impl Tag {
    /// A value for each of `devices`: as many of each as its share says, and nobody can tell where.
    pub fn deal(&self, devices: usize, seed: u64) -> Vec<&str> {
        let mut dealt = Vec::with_capacity(devices);
        let mut percent_before = 0;
        for (value, percent) in &self.shares {
            percent_before += percent;
            dealt.resize(devices * percent_before / 100, value.as_str());
        }
        fastrand::Rng::with_seed(seed).shuffle(&mut dealt);
        dealt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_gets_its_share_and_two_tags_do_not_go_together() {
        let ring: Tag = "ring=canary:1,early:9,broad:90".parse().unwrap();
        let site: Tag = "site=ams:50,ber:50".parse().unwrap();
        let (rings, sites) = (ring.deal(500, 1), site.deal(500, 2));
        let count = |value| rings.iter().filter(|dealt| **dealt == value).count();
        assert_eq!((count("canary"), count("early"), count("broad")), (5, 45, 450));
        let both = rings.iter().zip(&sites).filter(|(ring, site)| **ring == "early" && **site == "ams");
        assert!((10..35).contains(&both.count()));
    }

    #[test]
    fn shares_that_are_not_all_are_refused() {
        for text in ["ring", "ring=a", "ring=a:50", "=a:100", "ring=a:x", "ring=a:60,b:60"] {
            assert_eq!(text.parse::<Tag>(), Err(BadTag), "{text}");
        }
    }
}
