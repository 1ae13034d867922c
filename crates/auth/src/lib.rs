//! SPF, DKIM, DMARC, ARC and iprev, verified and signed; the only user of mail-auth.
