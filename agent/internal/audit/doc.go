// Package audit brings events into Vault, whose audit devices are the record.
//
// An event is durable on this host before [Sink.Record] returns, and is kept
// until Vault has answered the request that carried it: delivery is at least
// once, in order, and every copy of an event is byte-equal. Events of all
// operations form one chain, which the plugin checks; see [wire.Event].
package audit
