"""The deliberate mistakes: each is one rule of the protocol broken, and must be found.

`MUTATIONS` are flags that the model reads; a run carries none of them, or one, or those of a pair
in `PAIRS`. `VARIANTS` are changes that consistency.md says are harmless: with one of them the model
must still find nothing.
"""

MUTATIONS = {
    # I1
    "no_mark": "a write commits without a mark; its tags are raised after COMMIT",
    "no_fence": "a write whose mark was refused or not answered commits all the same",
    # I2
    "use_pending": "facts with a pending tag are used and filled",
    # I3
    "fill_s0_late": "an L1 fill takes its s0 from the view at the time of the fill",
    "l2_s0_late": "an L2 fill takes its s0 from the view at the time of the SET",
    "l2_no_check": "READ hands out L2 entries without looking at the scores of their tags",
    "shared_mark": "a mark is named by its tag only, so that two writers share it",
    # I4
    "no_sentinel": "OPEN and MARK make a registry that is not there",
    "no_registry": "OPEN and MARK make a registered set again that is not there",
    "no_nonce": "neither a validation nor READ compares the nonce",
    "close_while_pending": "CLOSE takes a set that holds marks",
    "no_floor": "neither a validation nor READ looks at the floor",
    # I6
    "no_lease_wait": "settle ends without waiting for the leases of the old generation",
    "no_settle_wait": "a write commits without a mark while the mode is settling",
    "enable_before_settle": "enable does not wait for mode off",
    "lease_kept_through_renewal": "the old lease stays while the reply of a renewal is under way",
    "lease_checked_once": "a second validation is taken although the lease has ended since",
    # I7
    "no_fill_order": "rule 1 is left out: entries put after the validation was sent are used",
    "no_v2": "cached and fresh facts are mixed without a second validation",
    "no_v2_check": "the second validation is sent, but its reply is not looked at",
    # I8
    "open_advances": "the reply of OPEN raises the sequence of a view that exists",
    "seq_before_log": "a reply raises the sequence of the view before the log",
    # I10
    "snapshot_restart": "a connection does not look at the run_id; Redis comes back from a file",
    # Needs `no_registry`: see PAIRS.
    "ack_without_mark": "a write is acknowledged, without a fence, although its mark was lost",
    # Sharing, 4.3 step 7
    "join_sent_before_arrival": "a call joins a validation that was sent before it arrived",
    "v2_joins_sent_before_snapshot": "a second validation joins one sent before the SQL snapshot",
    # The environment set, 3.1
    "ev_ignores_mark": "a mark on E does not make ev None",
    "ev_not_compared": "grants are used whatever their ev is",
    "trim_drops_e": "trim removes E",
    "star_first": "`*` is read first in a pipeline, not last",
}

# Mistakes that only show together; see consistency.md section 10.
PAIRS = (("ack_without_mark", "no_registry"),)

VARIANTS = {
    "lease_checked_at_send": "a validation looks at the lease when it is sent, not at the reply",
    "ev_is_sequence": "ev is the sequence of `*`, and None while anything there is pending",
    "fill_pending": "facts with a pending tag are filled",
    "ack_before_bump": "a write is acknowledged at COMMIT and bumps later",
    "gen_at_enable": "enable raises the generation number, as fence does",
}
