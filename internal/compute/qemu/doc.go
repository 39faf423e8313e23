// Package qemu runs machines in QEMU processes of its own, with no daemon in
// between.
//
// Invariants:
//   - a machine is a folder: what it is made of (machine.json), and what its
//     process left or listens on; nothing is known of it but what stands there,
//     so a new process on the folder knows as much as the one before;
//   - whether a machine runs is told by the lock that QEMU holds on its pid file
//     as long as it lives, and by nothing else: no other process is ever taken
//     for it, signalled or waited for;
//   - a process has the disks of machine.json: a disk is written there before it
//     is plugged in, and removed after it was unplugged.
package qemu
