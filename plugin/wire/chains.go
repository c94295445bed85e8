package wire

import "time"

// Chains is what the path chains answers: the ends of all chains, against which
// audit files are verified. Saved as JSON it serves where Vault cannot be reached.
type Chains struct {
	// MountAccessor is that of our mount; no other mount of a Vault ever has it. The
	// plugin does not know it: who reads the rest from Vault asks Vault for it.
	MountAccessor string `json:"mount_accessor,omitempty"`
	// Agents has every agent that ever wrote an event, deleted ones included.
	Agents map[string]AgentChain `json:"agents"`
	// Facts is the last fact that was acknowledged; its Epoch is "1", or "0" when
	// there is none.
	Facts Chain `json:"facts"`
	// At is when this was so, by the plugin's clock: an event that Vault answered
	// before is within its chain. Zero when an earlier version of the plugin answered.
	At time.Time `json:"at,omitzero"`
}

// AgentChain is the end of one agent's chain.
type AgentChain struct {
	Chain
	// Entities are those the agent wrote its events as, the last one at the end;
	// empty when the last event was written to an earlier version of the plugin.
	Entities []string `json:"entities"`
}
