//! A real Postfix in folders of its own.
