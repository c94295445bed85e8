package plugin

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// keySettings holds the settings of the mount, once somebody has written them.
const keySettings = "settings"

// settings are of the mount as a whole.
type settings struct {
	// Retention is how long an operation is kept after its end; 0: for ever.
	Retention time.Duration `json:"retention"`
}

const (
	defaultRetention = 90 * 24 * time.Hour
	// shortestRetention is far more than the longest rate window, which is made of the
	// stored operations themselves, and leaves a person a day to look at what happened.
	shortestRetention = 24 * time.Hour
)

func (b *backend) settingsPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern: "settings/?$",
		Fields: map[string]*framework.FieldSchema{
			"retention": {
				Type: framework.TypeDurationSecond, Default: int(defaultRetention.Seconds()),
				Description: "How long operations are kept after their end, with plan, report and receipt: 90 days unless given, at least 24 hours; 0 keeps them for ever.",
			},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.pathSettingsRead},
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathSettingsWrite, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Settings of the mount: how long operations are kept.",
		HelpDescription: `
An operation whose retention is over is removed with everything that belongs to it,
within minutes, the oldest first. One that has not ended, whose accounts are not gone
or whose target could not be cleaned stays, and while the mount is locked down
everything does. Chains of events are not shortened. What must be kept longer, such as
receipts, is to be read before; the events stand in Vault's audit devices.`,
	}}
}

// settings are those that hold now.
func (b *backend) settings(ctx context.Context, s logical.Storage) (settings, error) {
	stored, err := getStored[settings](ctx, s, keySettings)
	if err != nil {
		return settings{}, err
	}
	if stored == nil {
		return settings{Retention: defaultRetention}, nil
	}
	return *stored, nil
}

func (b *backend) pathSettingsRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	set, err := b.settings(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{"retention": int64(set.Retention.Seconds())}}, nil
}

func (b *backend) pathSettingsWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	retention, given, err := durationGiven(d, "retention")
	switch {
	case err != nil:
		return nil, err
	case !given:
		return nil, invalidField("retention", "is missing; it is the one setting there is")
	case retention != 0 && retention < shortestRetention:
		return nil, &wire.Error{
			Code: wire.CodeInvalid, Field: "retention", Reason: "is less than " + shortestRetention.String(),
			Hint: "give at least 24h, or 0 to keep operations for ever",
		}
	}
	if err := putStored(ctx, req.Storage, keySettings, settings{Retention: retention}); err != nil {
		return nil, err
	}
	b.pruneSoon(req.Storage)
	return nil, nil
}
