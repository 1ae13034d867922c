//! What tests stand on: DNS with zones, SMTP peers, Redis and Postfix processes, a ledger.
