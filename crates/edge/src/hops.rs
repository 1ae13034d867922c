//! Counts the `Received` fields of a message as it streams by: many of them are a loop (RFC 5321 §6.3).

const NAME: &[u8; 9] = b"received:";

/// The count so far.
#[derive(Default)]
pub(crate) struct Hops {
    count: usize,
    /// Octets of the present line.
    column: usize,
    /// The present line has agreed with `NAME` as far as it goes.
    agrees: bool,
    over: bool,
}

impl Hops {
    /// `Received` fields seen in the header section.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn see(&mut self, mut octets: &[u8]) {
        while !self.over && !octets.is_empty() {
            if self.column >= NAME.len() || (self.column > 0 && !self.agrees) {
                let end = memchr::memchr(b'\n', octets);
                self.column = if end.is_some() { 0 } else { NAME.len() };
                octets = &octets[end.map_or(octets.len(), |end| end + 1)..];
                continue;
            }
            let octet = octets[0];
            octets = &octets[1..];
            match (self.column, octet) {
                (0, b'\r') => self.over = true,
                (_, b'\n') => self.column = 0,
                (column, octet) => {
                    self.agrees = (column == 0 || self.agrees) && octet.to_ascii_lowercase() == NAME[column];
                    self.column += 1;
                    if self.agrees && self.column == NAME.len() {
                        self.count += 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_header_are_counted_however_they_arrive() {
        let message = b"Received: a\r\n\tb\r\nSubject: Received:\r\nRECEIVED: c\r\nReceived-SPF: x\r\nR: y\r\n\r\nReceived: z\r\n";
        for size in 1..message.len() {
            let mut hops = Hops::default();
            message.chunks(size).for_each(|chunk| hops.see(chunk));
            assert_eq!(hops.count(), 2, "{size}");
        }
    }
}
