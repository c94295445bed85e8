package wire

import "time"

// Lockdown is what lockdown answers: whether the mount is locked, by whom and
// why, and what is left to be ended.
type Lockdown struct {
	Locked bool `json:"locked"`
	// At, By and Reason are of the lockdown that holds.
	At     time.Time      `json:"locked_at,omitzero"`
	By     *LockdownParty `json:"locked_by,omitempty"`
	Reason string         `json:"reason,omitempty"`
	// Rotate: root and static credentials are rotated as part of it.
	Rotate bool `json:"rotate,omitempty"`
	// BreakGlassAt is from when whoever locked may unlock too; zero is never.
	BreakGlassAt time.Time `json:"break_glass_at,omitzero"`
	// Left is what is not ended yet. It counts down to nothing and stays there.
	Left *LockdownLeft `json:"left,omitempty"`
	// Done: nothing is left.
	Done    bool            `json:"done,omitempty"`
	History []LockdownEntry `json:"history,omitempty"` // former ones, the newest first
}

// LockdownParty is who locked or unlocked. A token without an entity, such as a
// root token, has only a display name.
type LockdownParty struct {
	EntityID string `json:"entity_id"`
	Name     string `json:"name"`
}

// String names the party for people.
func (p LockdownParty) String() string {
	if p.EntityID == "" {
		return p.Name + " (without an entity)"
	}
	return p.Name + " (entity " + p.EntityID + ")"
}

// LockdownLeft is what a lockdown has still to end.
type LockdownLeft struct {
	// Requests were let in before the lockdown and are still being answered.
	Requests int `json:"requests"`
	// Operations have not ended, are held by an agent, or may have accounts.
	Operations int `json:"operations"`
	Accounts   int `json:"accounts"`
	// Servers have not been searched for logins of this mount since.
	Servers []LockdownServer `json:"servers"`
	// Rotations have been asked for and are not done.
	Rotations []LockdownRotation `json:"rotations"`
}

// Nothing reports whether nothing is left.
func (l LockdownLeft) Nothing() bool {
	return l.Requests == 0 && l.Operations == 0 && l.Accounts == 0 && len(l.Servers) == 0 && len(l.Rotations) == 0
}

// LockdownServer is a connection whose server has not been found clean yet, and
// why, once it was tried.
type LockdownServer struct {
	Connection string `json:"connection"`
	Code       Code   `json:"code,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// LockdownRotation is a credential that is not rotated yet, and why, once it was
// tried. Root says that it is the own user of connection Name; else Name is a
// static role.
type LockdownRotation struct {
	Root   bool   `json:"root"`
	Name   string `json:"name"`
	Code   Code   `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// LockdownEntry is a lockdown that was lifted.
type LockdownEntry struct {
	LockedAt     time.Time     `json:"locked_at"`
	LockedBy     LockdownParty `json:"locked_by"`
	Reason       string        `json:"reason"`
	UnlockedAt   time.Time     `json:"unlocked_at"`
	UnlockedBy   LockdownParty `json:"unlocked_by"`
	UnlockReason string        `json:"unlock_reason"`
	// BreakGlass: it was lifted by whoever had locked, after the waiting time.
	BreakGlass bool `json:"break_glass,omitempty"`
	// LeftBehind are connections and static roles that were given up on by name.
	LeftBehind []string `json:"left_behind,omitempty"`
}

// Lockdown is where the mount is locked and what is left is read.
func (m Mount) Lockdown() string { return m.join("lockdown") }

// Unlock is where a lockdown is lifted.
func (m Mount) Unlock() string { return m.join("unlock") }
