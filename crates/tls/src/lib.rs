//! rustls set-up for both ends of SMTP, and certificate reload.
