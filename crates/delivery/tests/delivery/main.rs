//! The delivery service over a real queue, real sockets and real Maildirs: one behaviour a file.

mod support;

mod abandoned_stream_stores_nothing;
mod aliases_are_followed;
mod bounce_is_readable_by_others;
mod bounce_without_a_signer;
mod broken_off_attempt_keeps_what_it_knows;
mod commit_that_disagrees_is_refused;
mod content_decides_about_eight_bits;
mod crash_makes_no_second_copy;
mod dead_next_hop_is_left_alone;
mod drain_hands_back;
mod expiry_bounces;
mod long_content_arrives_intact;
mod maildir_takes_a_message;
mod null_sender_gets_no_bounce;
mod panic_ends_one_attempt;
mod partial_recipients;
mod permanent_failure_bounces;
mod probe_asks_the_store;
mod quarantine_goes_to_junk;
mod quarantined_mail_gets_no_bounce;
mod relay_takes_what_a_domain_sends;
mod remote_server_takes_a_message;
mod retry_then_success;
mod route_change_takes_effect;
mod second_accept_is_answered_as_the_first;
mod settlement_outlasts_an_outage;
mod slow_next_hop_stalls_no_other;
mod store_outage_is_survived;
