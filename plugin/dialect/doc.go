// Package dialect knows how database products write identifiers, literals and
// connection strings. It imports the standard library only.
//
// It guarantees that a value never changes the meaning of the text it is put
// into: whatever cannot be written safely at a place is refused with an error
// that does not repeat the value.
package dialect
