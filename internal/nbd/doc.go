// Package nbd is the Network Block Device protocol: a server of exports and a
// client, by the NBD project's doc/proto.md and doc/uri.md. Fixed newstyle
// only, no TLS: callers listen on unix sockets and on loopback.
//
// Invariants:
//   - whatever a peer sends costs at most its own connection: every length is
//     checked before memory is taken for it, and options, requests, bytes in
//     flight, connections and the time for a handshake are bounded;
//   - a reply is sent only after the Backend returned, so an acknowledged
//     write, flush or FUA is what the Backend says it is;
//   - after Export.Remove, Suspend with force, or the end of Serve returned,
//     no request of the connections concerned is in the Backend or will be;
//   - the client hands out bytes only if the server sent each of them exactly
//     once, and repeats on a new connection only what cannot do harm: reads,
//     and writes of which no byte had been given to a connection;
//   - an acknowledged write that a lost connection may have cost fails the
//     next Flush.
//
// Server, Export and Client serve any number of goroutines. The package keeps
// no state of its own and starts no goroutine that its Serve, Dial or Close
// does not wait for.
package nbd
