# frozen_string_literal: true

# Hooks around a snapshot: `require 'snapshot_restore'`, and register blocks or callables while the function initializes.
# They do nothing unless the function is published with SnapStart. Lambda has nothing of the kind for Ruby.
module SnapshotRestore
  @before = []
  @after = []

  class << self
    # Has the block called before the snapshot, the last registered first.
    def before_snapshot(callable = nil, &block)
      @before << hook(callable, block)
    end

    # Has the block called after each restore, in the order of registration.
    def after_restore(callable = nil, &block)
      @after << hook(callable, block)
    end

    # For the runtime; hooks that a hook registers are called too.
    def run_before_snapshot
      @before.pop.call until @before.empty?
    end

    # For the runtime.
    def run_after_restore
      @after.each(&:call)
    end

    private

    def hook(callable, block)
      hook = callable || block
      raise ArgumentError, 'give a block or something that responds to call' unless hook.respond_to?(:call)

      hook
    end
  end
end
