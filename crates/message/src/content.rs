//! The octets of a message: slices of what arrived, with what we put in front.

use bytes::Bytes;

/// Octets of the message as it arrived that are left out of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The first octet to leave out.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// The octets of a message (header fields and body, CRLF line ends, not dot-stuffed) as a list of
/// slices. Cloning copies no octet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    slices: Vec<Bytes>,
    len: u64,
}

impl Content {
    /// An empty content.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a slice at the end. Empty slices are dropped.
    pub fn push(&mut self, slice: Bytes) {
        if !slice.is_empty() {
            self.len += slice.len() as u64;
            self.slices.push(slice);
        }
    }

    /// Puts a slice in front.
    pub fn prepend(&mut self, slice: Bytes) {
        if !slice.is_empty() {
            self.len += slice.len() as u64;
            self.slices.insert(0, slice);
        }
    }

    /// Length in octets.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slices, in order.
    #[must_use]
    pub fn slices(&self) -> &[Bytes] {
        &self.slices
    }

    /// All octets in one piece; a copy unless there is just one slice.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self.slices.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            many => many.concat().into(),
        }
    }

    /// The content without the cuts. They may overlap and come in any order; octets past the end
    /// are ignored.
    #[must_use]
    pub fn without(&self, cuts: &[Cut]) -> Self {
        let mut cuts: Vec<Cut> = cuts.iter().copied().filter(|cut| cut.length > 0).collect();
        cuts.sort_by_key(|cut| cut.offset);
        let mut kept = Self::new();
        let mut start = 0;
        for slice in &self.slices {
            let end = start + slice.len() as u64;
            let mut at = start;
            for cut in &cuts {
                let cut_end = cut.offset.saturating_add(cut.length);
                if cut_end <= at || cut.offset >= end {
                    continue;
                }
                if cut.offset > at {
                    kept.push(slice.slice((at - start) as usize..(cut.offset - start) as usize));
                }
                at = cut_end.min(end);
            }
            if at < end {
                kept.push(slice.slice((at - start) as usize..));
            }
            start = end;
        }
        kept
    }
}

impl From<Bytes> for Content {
    fn from(slice: Bytes) -> Self {
        let mut content = Self::new();
        content.push(slice);
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cuts_remove_exactly_their_octets(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8),
            cuts in prop::collection::vec((0u64..100, 0u64..30), 0..5),
        ) {
            let mut content = Content::new();
            slices.iter().for_each(|slice| content.push(slice.clone().into()));
            let cuts: Vec<Cut> = cuts.into_iter().map(|(offset, length)| Cut { offset, length }).collect();
            let expected: Vec<u8> = content.to_bytes().iter().enumerate()
                .filter(|(at, _)| !cuts.iter().any(|cut| (cut.offset..cut.offset + cut.length).contains(&(*at as u64))))
                .map(|(_, byte)| *byte).collect();
            let kept = content.without(&cuts);
            prop_assert_eq!(kept.to_bytes().to_vec(), expected.clone());
            prop_assert_eq!(kept.len(), expected.len() as u64);
        }
    }
}
