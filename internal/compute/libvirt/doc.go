// Package libvirt is a compute.Driver for the machines that people already run
// under libvirt. All of them are foreign: they are started, stopped and frozen
// as the service asks, and neither made nor changed nor destroyed.
//
// Invariant: nothing is known of a machine but what libvirt says when it is
// asked.
package libvirt
