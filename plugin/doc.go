// Package plugin is the dbops secrets engine: everything that is a method on the
// backend of one mount.
package plugin
