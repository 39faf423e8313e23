// Package qmp speaks the QEMU Machine Protocol, and the guest agent's variant of
// it: JSON objects over a stream socket, one command at a time, answers matched
// by id, events in between. It knows no command.
//
// Invariants:
//   - a peer that sends what is no answer costs its connection, nothing else:
//     lines are bounded, and nothing of them is believed but their shape;
//   - a command that was given up is never mistaken for the next: QMP's answers
//     have ids, and an agent's connection, which has none, is closed with it.
//
// Sources: QEMU's docs/interop/qmp-spec.rst and qga's guest-sync-delimited.
package qmp
