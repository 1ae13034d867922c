//! MailDomain: its types, their validation, and the live index of them.
