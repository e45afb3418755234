//! The conformance scenarios for callers in C through a runtime driver, in each of its lives: at
//! boot, after `ExitBootServices`, and after `SetVirtualAddressMap`, when each access to an old
//! address faults. Then the driver's own tests.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests without the harness that allows it"
)]

mod driver;
mod lab;

use aarch64_monitor::Interface;
use lab::{Life, RuntimeSite, Way};
use libtest_mimic::{Arguments, Failed, Trial};

/// Scenarios that are not about callers in C, but that a caller in C with a single comm buffer can
/// run. C's statuses do not distinguish the errors that other scenarios assert.
const OTHERS: &[&str] = &[
    "response_fills_the_buffer",
    "response_longer_than_request",
    "response_shorter_than_request",
    "callback_during_call_is_busy",
    "callback_leaves_the_outer_request_alone",
    "changed_length_beyond_the_buffer_is_refused",
    "changed_recipient_is_refused",
    "command_value_defaults_to_ff",
    "command_value_is_configurable",
    "data_port_is_written_before_the_command_port",
    "deleted_variable_is_gone",
    "echo_returns_what_was_sent",
    "empty_response_has_no_bytes",
    "failed_handler_is_an_error",
    "failure_leaves_nothing_behind",
    "foreign_header_format_is_refused",
    "header_length_counts_without_mailbox",
    "ignored_request_is_an_error",
    "late_message_is_the_response_that_mm_gave",
    "late_mm_is_an_error_and_harms_no_other_call",
    "lengths_need_no_alignment",
    "lies_leave_nothing_behind",
    "many_calls_work",
    "message_too_large_is_refused",
    "missing_variable_is_not_found",
    "mm_reads_the_data_value",
    "no_handler_is_an_error",
    "one_call_raises_one_mmi",
    "request_fills_the_buffer",
    "rewritten_message_length_is_accepted",
    "short_read_tells_the_needed_size",
    "smi_after_many_pauses_is_awaited",
    "smis_are_not_switched_on_unasked",
    "smis_are_switched_on_on_request",
    "stale_status_is_not_believed",
    "success_leaves_nothing_behind",
    "switched_off_smis_are_an_error",
    "unknown_variable_function_is_unsupported",
    "variable_names_can_be_walked",
    "variable_payload_size_is_returned",
    "variable_reads_back_as_written",
    "variable_storage_sizes_are_consistent",
    "wiped_header_is_refused",
];

/// Whether a scenario can run in a life.
fn is_playable(life: Life, name: &str) -> bool {
    match name {
        // Physical and virtual address differ once the operating system has chosen them: see
        // `driver`.
        "c_addresses_must_agree" => life.is_one_to_one(),
        // Notifications need boot services.
        "c_call_from_a_notification_waits_for_the_call_in_progress" => life == Life::Boot,
        _ => name.starts_with("c_") || OTHERS.contains(&name),
    }
}

fn main() {
    if driver::plays_a_stale_pointer() {
        return;
    }
    let known = mm_conformance::all();
    let missing = OTHERS
        .iter()
        .find(|name| !known.iter().any(|scenario| scenario.name == **name));
    assert_eq!(missing, None, "a scenario is gone");
    let mut trials = driver::trials();
    let ways = [
        Way::Ports,
        Way::Secure(Interface::SpmMm),
        Way::Secure(Interface::Ffa),
        Way::Secure(Interface::StandaloneMm),
    ];
    for way in ways {
        let prefix = match way {
            Way::Ports => String::new(),
            Way::Secure(interface) => format!("{interface:?}::"),
        };
        for life in Life::ALL {
            let abilities = RuntimeSite::lab(life, way).abilities();
            for scenario in known.iter().filter(|scenario| abilities.contains(scenario.needs)) {
                if !is_playable(life, scenario.name) {
                    continue;
                }
                let (name, scenario) = (format!("{prefix}{life:?}::{}", scenario.name), *scenario);
                trials.push(Trial::test(name, move || {
                    scenario
                        .run(&RuntimeSite::lab(life, way))
                        .map_err(|not_ok| Failed::from(not_ok.why()))
                }));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
