//! SMTP in: listeners, sessions, policy, and the stream to verifier and delivery.
