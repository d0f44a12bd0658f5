"""Which tests run on every kernel of the matrix: the same files that run on this machine, fewer of each.

An id that no longer exists stops the guest with an error, so this list cannot rot unseen.
"""

CORE = [
    "namespaced/test_load.py",
    # what `check` finds on this kernel
    "namespaced/test_check.py::test_shape",
    "namespaced/test_check.py::test_what_the_datapath_needs_is_there",
    "namespaced/test_check.py::test_hazards_are_found_by_behaviour",
    "namespaced/test_check.py::test_fionread_agrees_with_a_program_of_another_language",
    # loads, attaches, is fast, is listed
    "namespaced/test_streams.py::test_one_connection_listed",
    "namespaced/test_streams.py::test_child_cgroup",
    "namespaced/test_eligibility.py::test_epoll_pair_becomes_fast",
    "namespaced/test_eligibility.py::test_blocking_pair_stays_tcp",
    "namespaced/test_eligibility.py::test_live_half_that_turns_blocking_leaves",
    # every byte, in order, once; ends of streams as TCP's
    "namespaced/test_streams.py::test_full_duplex_200_connections",
    "namespaced/test_streams.py::test_churn_8000_connections",
    "namespaced/test_streams.py::test_half_close_then_blocking_read[many-writes]",
    "namespaced/test_streams.py::test_close_right_after_write[reader-late]",
    "namespaced/test_streams.py::test_defer_accept_order",
    "namespaced/test_streams.py::test_reset_keeps_what_arrived",
    "namespaced/test_streams.py::test_reset_reaches_a_reader_with_a_long_queue",
    # nobody reads: bounded, no stall, all of it there later
    "namespaced/test_memory.py::test_slow_reader",
    "namespaced/test_memory.py::test_slow_reader_in_a_memory_cgroup[64KiB]",
    "namespaced/test_memory.py::test_bytes_sent_before_accept_and_the_memory_cgroup",
    # other lives of one socket, other kinds of sockets, other ways between them
    "namespaced/test_reconnect.py::test_disconnect_and_reconnect[both]",
    "namespaced/test_handshakes.py::test_mptcp_listener",
    "namespaced/test_handshakes.py::test_fast_open",
    "namespaced/test_ktls.py",
    "namespaced/test_tuples.py::test_both_open",
    "namespaced/test_paths.py::test_dnat_and_masquerade",
    "namespaced/test_paths.py::test_redirect_to_a_local_proxy",
    "namespaced/test_paths.py::test_addresses[ipv6]",
    # what needs a kernel with trampolines; what only some kernels have
    "namespaced/test_guard.py",
    "namespaced/test_adopt.py::test_idle_connection",
    "namespaced/test_strict.py::test_uploads_to_a_reader_that_asks[1024]",
    "namespaced/test_strict.py::test_a_recv_ends_where_the_bytes_end",
    "namespaced/test_strict.py::test_a_stream_without_a_timer_leaves_at_the_next_chance",
    "namespaced/test_hazards.py::test_flags_of_a_call_that_took_bytes_of_tcp",
    # what is seen of it: the journal, and sums that add up
    "observe/test_journal.py::test_the_life_of_a_connection",
    "observe/test_journal.py::test_what_stays_on_tcp_says_why",
    "observe/test_connections.py::test_names_states_and_processes",
    "observe/test_capture.py::test_each_message_has_its_path",
    "observe/test_capture.py::test_several_at_one_time",
    "observe/test_capture.py::test_a_workload_may_forbid_it",
    # detach and accidents
    "namespaced/test_detach.py::test_detach_with_unread_data[1000-60]",
    "namespaced/test_detach.py::test_detach_idle_pairs_with_a_blocked_reader",
    "namespaced/test_detach.py::test_detach_and_attach_while_traffic_flows",
    "namespaced/test_kill.py::test_first_attach_killed",
]

# The differential suite's core, where each case is an emulated minute for a whole class of kernels: one style and `safe`,
# and what `all` promises of endings and order.
CASES = {
    "safe": """half_close close_after_write close_unread reset_after_data write_after_peer_close peek fionread
        fionread_of_tcp_bytes one_byte_writes big_write slow_reader sendfile defer_accept disconnect_and_reconnect oob
        masks_of_a_life tcp_info_bytes splice_in""".split(),
    "all": "half_close close_after_write reset_after_data big_write slow_reader defer_accept tcp_info_bytes".split(),
}
CORE += [f"differential/test_differential.py::test_case[{name}-nonblocking-{mode}]" for mode in CASES for name in CASES[mode]]
CORE += [f"differential/test_differential.py::test_case[{name}-blocking-safe]" for name in ("waitall", "half_close", "two_threads")]
