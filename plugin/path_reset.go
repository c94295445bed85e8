package plugin

import (
	"context"
	"slices"
	"sync"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) resetPaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern: "reset/" + framework.GenericNameRegex("name"),
			Fields: map[string]*framework.FieldSchema{
				"name": {Type: framework.TypeString, Description: "Name of the connection."},
			},
			Callbacks:    map[logical.Operation]framework.OperationFunc{logical.UpdateOperation: b.pathReset},
			HelpSynopsis: "Close the sessions of a connection and open new ones.",
		},
		{
			Pattern: "reload/" + framework.GenericNameRegex("plugin_name"),
			Fields: map[string]*framework.FieldSchema{
				"plugin_name": {Type: framework.TypeString, Description: "Kind of database, as in config/."},
			},
			Callbacks:    map[logical.Operation]framework.OperationFunc{logical.UpdateOperation: b.pathReload},
			HelpSynopsis: "Reset all connections of one kind of database.",
		},
	}
}

func (b *backend) pathReset(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return nil, b.resetConnection(ctx, req.Storage, field[string](data, "name"))
}

// resetConnection reads the configuration again and, where it says so, logs in
// with it. Calls in flight end on the sessions they have.
func (b *backend) resetConnection(ctx context.Context, s logical.Storage, name string) error {
	b.connections.put(name, nil)
	b.rotations.retryNow(name)
	c, err := b.usableConnection(ctx, s, name)
	if err != nil {
		return err
	}
	driver, err := c.open()
	if err != nil || !c.VerifyConnection || c.flag(detailSelfManaged) {
		return c.explain(err)
	}
	return c.explain(driver.Verify(ctx))
}

// resetsAtOnce bounds how many connections are opened at the same time. One that
// does not answer delays the others by its timeout at most.
const resetsAtOnce = 32

// pathReload resets each connection of a product. One that fails is logged and
// not among those answered.
func (b *backend) pathReload(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	pluginName := field[string](data, "plugin_name")
	names, err := listStored(ctx, req.Storage, prefixConfig)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	reloaded := []string{}
	slots := make(chan struct{}, resetsAtOnce)
	var group sync.WaitGroup
	for _, name := range names {
		c, err := b.connections.get(ctx, req.Storage, name)
		if err != nil {
			return nil, err
		}
		if c == nil || c.PluginName != pluginName {
			continue
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := b.resetConnection(ctx, req.Storage, name); err != nil {
				b.Logger().Error("a connection could not be reset", "connection", name, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			reloaded = append(reloaded, name)
		})
	}
	group.Wait()
	slices.Sort(reloaded)
	return &logical.Response{Data: map[string]any{"connections": reloaded, "count": len(reloaded)}}, nil
}
