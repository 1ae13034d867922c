//! What each command does, once the rules of the session admit it. One verb a file.

mod auth;
mod data;
mod ehlo;
mod mail;
mod rcpt;
mod starttls;
