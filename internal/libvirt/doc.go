// Package libvirt talks to the libvirt daemon of this machine, and tells what
// its domains are made of.
//
// Invariants:
//   - nothing is kept between two calls: each has a connection of its own, so a
//     daemon that was restarted is met by the next call, and one call that hangs
//     holds up no other;
//   - a call whose context ends closes its connection and returns; what the
//     daemon began for it, it may still end;
//   - a domain is read as it is described, never rewritten.
package libvirt
